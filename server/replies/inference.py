"""The checks and steps that `/api/generate` and `/api/chat` share, in Ollama's order."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from rwkv_core.chat.messages import Think
from server.replies.generation import Piece, join
from server.store.stored_model import StoredModel
from server.wire.errors import ApiError
from server.wire.go_text import go_quote
from server.wire.schemas import InferenceRequest

_MAX_TOP_LOGPROBS = 20


def check_top_logprobs(asked: InferenceRequest) -> None:
    if not 0 <= asked.top_logprobs <= _MAX_TOP_LOGPROBS:
        raise ApiError(400, f"top_logprobs must be between 0 and {_MAX_TOP_LOGPROBS}")


def wanted_top_logprobs(asked: InferenceRequest) -> int | None:
    """How many alternatives to name for each token; None: nothing about tokens."""
    return asked.top_logprobs if asked.logprobs else None


def check_thinking(model: StoredModel, asked: InferenceRequest) -> None:
    wants_thinking = asked.think not in (None, Think.OFF)
    if wants_thinking and "thinking" not in model.capabilities:
        raise ApiError(400, f"{go_quote(asked.model)} does not support thinking")


def check_able(model: StoredModel, **wanted: bool) -> None:
    """Raises ApiError (400) for what is wanted but not among the model's capabilities."""
    missing = [
        name for name, is_wanted in wanted.items() if is_wanted and name not in model.capabilities
    ]
    if missing:
        # Ollama names the model in full here, and puts each capability on a line of its own.
        raise ApiError(400, f"{model.name} does not support " + "\n".join(missing))


async def as_asked(pieces: AsyncGenerator[Piece], *, stream: bool) -> AsyncGenerator[Piece]:
    """The pieces as they come, or joined into one at the end."""
    collected: list[Piece] = []
    async with aclosing(pieces):
        async for piece in pieces:
            if stream:
                yield piece
            else:
                collected.append(piece)
    if collected:
        yield join(collected)
