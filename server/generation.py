"""One reply, from a prompt to pieces of text: what generate and chat have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from rwkv_core.chat.reply import ReplyKind, ReplyParser, ReplyPart
from rwkv_core.engine import FinishedEvent, GenerationRequest, GenerationStats
from server.model_manager import LoadedModel
from server.options import Options
from server.prompts import Prompt
from server.streaming import generate
from server.tool_calls import NumberedCall, ToolCallParser


@dataclass(frozen=True)
class Timing:
    """When the request came and when its model was in memory (monotonic clock, ns)."""

    start_ns: int
    loaded_ns: int


@dataclass(frozen=True)
class Final:
    """How the reply ended. `context` is every token of prompt and reply, if that was asked for."""

    reason: str
    stats: GenerationStats
    context: tuple[int, ...]
    total_ns: int
    load_ns: int


@dataclass(frozen=True)
class Piece:
    """A part of the reply; the last one has `final`."""

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[NumberedCall, ...] = ()
    final: Final | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.content or self.thinking or self.tool_calls or self.final)


async def reply(
    loaded: LoadedModel,
    prompt: Prompt,
    options: Options,
    timing: Timing,
    *,
    with_context: bool = False,
) -> AsyncGenerator[Piece]:
    """Generates the reply. Closing the generator cancels the generation.

    Raises OptionError for a prompt or options that the engine refuses, GenerationError or
    EngineStoppedError when it fails.
    """
    tokenizer, facts = loaded.model.tokenizer, loaded.stored.facts

    def encode(text: str) -> tuple[int, ...]:
        return (*prompt.context, *tokenizer.encode(text))

    # In a thread: a long prompt takes a while.
    token_ids = await asyncio.to_thread(encode, prompt.text)
    request = GenerationRequest(
        prompt_token_ids=token_ids,
        sampling=options.sampling,
        max_new_tokens=options.max_new_tokens(len(token_ids), facts.context_length),
        stops=(*prompt.stops, *(stop for stop in options.stops if stop not in prompt.stops)),
    )
    reader = _Reader(prompt)
    texts = [prompt.text]
    async with aclosing(generate(loaded.engine, request)) as events:
        async for event in events:
            if isinstance(event, FinishedEvent):
                for piece in reader.flush():
                    yield piece
                context = await asyncio.to_thread(encode, "".join(texts)) if with_context else ()
                yield Piece(final=_final(event, context, timing))
            else:
                texts.append(event.text)
                for piece in reader.push(event.text):
                    yield piece


def join(pieces: list[Piece]) -> Piece:
    """The whole reply as one piece. Raises IndexError for no pieces."""
    return Piece(
        content="".join(piece.content for piece in pieces),
        thinking="".join(piece.thinking for piece in pieces),
        tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
        final=pieces[-1].final,
    )


def _final(event: FinishedEvent, context: tuple[int, ...], timing: Timing) -> Final:
    return Final(
        reason=event.reason.value,
        stats=event.stats,
        context=context,
        total_ns=time.monotonic_ns() - timing.start_ns,
        load_ns=timing.loaded_ns - timing.start_ns,
    )


class _Reader:
    """Raw text to pieces: the thought apart from the content, calls of tools apart from both."""

    def __init__(self, prompt: Prompt) -> None:
        fmt, tools = prompt.format, prompt.format.tools
        self._parser = ReplyParser(fmt, prompt.think) if prompt.think else None
        self._tools = ToolCallParser(tools, prompt.tools) if tools and prompt.tools else None

    def push(self, text: str) -> list[Piece]:
        if self._parser is None:
            return [Piece(content=text)] if text else []
        return self._read(self._parser.push(text))

    def flush(self) -> list[Piece]:
        pieces = self._read(self._parser.flush()) if self._parser else []
        if self._tools:
            content, calls = self._tools.flush()
            pieces.append(Piece(content=content, tool_calls=tuple(calls)))
        return [piece for piece in pieces if not piece.is_empty]

    def _read(self, parts: list[ReplyPart]) -> list[Piece]:
        """At most one piece: what came at once goes out at once."""
        thinking = "".join(part.text for part in parts if part.kind is ReplyKind.THINKING)
        content = "".join(part.text for part in parts if part.kind is ReplyKind.CONTENT)
        calls: list[NumberedCall] = []
        if self._tools:
            content, calls = self._tools.push(content)
        piece = Piece(content, thinking, tuple(calls))
        return [] if piece.is_empty else [piece]
