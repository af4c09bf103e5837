"""The reply to `/v1/completions`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sse_starlette import ServerSentEvent

from server.openai.chat_writer import END, FINGERPRINT, NO_USAGE, usage
from server.openai.errors import openai_error
from server.openai.schemas import CompletionRequest
from server.replies.generation import Piece
from server.wire.answers import Json
from server.wire.event_stream import comment, event, text_event
from server.wire.reply_ids import new_id


class CompletionWriter:
    """Implements `ReplyWriter`. A thought is no part of a completion, as in Ollama."""

    def __init__(self, asked: CompletionRequest) -> None:
        self._model = asked.model
        self._with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self._id = new_id("cmpl", "-")
        self._created = int(time.time())

    def whole(self, piece: Piece) -> Json:
        assert piece.final is not None  # a whole reply is over
        return self._object([_choice(piece)]) | {"usage": usage(piece.final)}

    def events(self, piece: Piece) -> Iterator[ServerSentEvent]:
        if not (piece.content or piece.final):
            return
        extra = {"usage": NO_USAGE} if self._with_usage else {}
        yield event(self._object([_choice(piece)]) | extra)
        if piece.final:
            if self._with_usage:
                yield event(self._object([]) | {"usage": usage(piece.final)})
            yield text_event(END)

    def failed(self, status: int, message: str) -> Iterator[ServerSentEvent]:
        yield event(openai_error(status, message))

    def ping(self) -> ServerSentEvent:
        return comment("ping")

    def _object(self, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }


def _choice(piece: Piece) -> Json:
    reason = piece.final.reason if piece.final else None
    return {"text": piece.content, "index": 0, "finish_reason": reason}
