"""One reply, from a prompt to pieces of text: what generate and chat have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from rwkv_core.cache import TokenArray
from rwkv_core.chat.messages import Message
from rwkv_core.chat.reply import ReplyKind, ReplyPart
from rwkv_core.drafts import default_max_tokens
from rwkv_core.engine import CutPoint, FinishedEvent, GenerationRequest, GenerationStats
from rwkv_core.logprobs import TokenLogprob
from server.loading.model_manager import LoadedModel
from server.replies.constraints import Schema, reply_constraint
from server.replies.options import Options
from server.replies.prompt_tokens import TextEncoder, common_beginning
from server.replies.prompts import Prompt
from server.replies.tool_calls import NumberedCall
from server.wire.streaming import generate

__all__ = ["Final", "Piece", "Timing", "TokenLogprob", "join", "reply"]

TokenIds: TypeAlias = tuple[int, ...]

# A small model that must not end a text of JSON may never end it by itself. Without a num_predict
# Ollama gives up after ten contexts; so does Anser where a grammar may hold a reply open.
_LIMIT_CONTEXTS = 10
_USUAL_CONTEXT = 4096


@dataclass(frozen=True)
class Timing:
    """When the request came and when its model was in memory (monotonic clock, ns)."""

    start_ns: int
    loaded_ns: int


@dataclass(frozen=True)
class Final:
    """How the reply ended. `context` is every token of prompt and reply, if that was asked for.

    `stop` is the stop string that ended it, one of the request's or of the prompt format; "" if
    none did.
    """

    reason: str
    stats: GenerationStats
    context: TokenIds
    total_ns: int
    load_ns: int
    stop: str = ""


@dataclass(frozen=True)
class Piece:
    """A part of the reply; the last one has `final`.

    `logprobs`, if they were asked for, are of all tokens that the model wrote, in order: also of
    the tags around a thought and of the white space that is dropped there, which come with the next
    piece, and of a call, which come with it.
    """

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[NumberedCall, ...] = ()
    final: Final | None = None
    logprobs: tuple[TokenLogprob, ...] = ()

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
    schema: Schema | None = None,
    num_top_logprobs: int | None = None,
) -> AsyncGenerator[Piece]:
    """Generates the reply. Closing the generator cancels the generation.

    With a `schema` the content is JSON that fits it, unless it is cut short. With
    `num_top_logprobs` (0 too) pieces have logprobs.

    Raises OptionError for a prompt or options that the engine refuses, ApiError (400) for a schema
    that cannot be compiled, GenerationError or EngineStoppedError when it fails.
    """
    # In a thread: a long prompt takes a while, and so does a large schema.
    request = await asyncio.to_thread(_request, loaded, prompt, options, schema, num_top_logprobs)
    watch = loaded.metrics.watch(loaded.stored.name.shortest, timing.start_ns)
    reader = _Reader(prompt)
    texts: list[str] = []
    try:
        async with aclosing(generate(loaded.engine, request, watch)) as events:
            async for event in events:
                reader.note(event.logprobs)
                if isinstance(event, FinishedEvent):
                    for piece in reader.flush():
                        yield piece
                    context: TokenIds = ()
                    if with_context:
                        context = await asyncio.to_thread(
                            _context, loaded.encoder, prompt, "".join(texts)
                        )
                    yield Piece(final=_final(event, context, timing), logprobs=reader.logprobs())
                else:
                    texts.append(event.text)
                    for piece in reader.push(event.text):
                        yield piece
    finally:
        # Of a reply that its client has cut short, too: the next turn repeats what there is of it.
        if texts:
            read_ahead = partial(_read_ahead, loaded, prompt, "".join(texts), reader.message())
            asyncio.get_running_loop().run_in_executor(None, read_ahead)


def _request(
    loaded: LoadedModel,
    prompt: Prompt,
    options: Options,
    schema: Schema | None,
    num_top_logprobs: int | None,
) -> GenerationRequest:
    """What the engine is asked for. Raises ApiError (400) for a schema that it cannot follow."""
    tokens, snapshot_at = _encode(loaded.encoder, prompt)
    context_length = loaded.stored.facts.context_length
    max_draft_tokens = options.draft_num_predict
    if max_draft_tokens is None:
        max_draft_tokens = default_max_tokens(loaded.model.executor)
    constraint = reply_constraint(loaded.model, prompt, schema)
    max_new_tokens = options.max_new_tokens(len(tokens), context_length)
    if constraint is not None and max_new_tokens is None:
        context = options.num_ctx or loaded.stored.facts.training_length or _USUAL_CONTEXT
        max_new_tokens = _LIMIT_CONTEXTS * context
    # Where a grammar rules there is no next turn to stop before.
    own_stops = () if schema is not None else prompt.stops
    return GenerationRequest(
        prompt_token_ids=tokens,
        sampling=options.sampling,
        max_new_tokens=max_new_tokens,
        stops=(*own_stops, *(stop for stop in options.stops if stop not in own_stops)),
        snapshot_at=snapshot_at,
        cache_scope=prompt.cache_scope,
        max_draft_tokens=max_draft_tokens,
        constraint=constraint,
        num_top_logprobs=num_top_logprobs,
    )


def join(pieces: list[Piece]) -> Piece:
    """The whole reply as one piece. Raises IndexError for no pieces."""
    return Piece(
        content="".join(piece.content for piece in pieces),
        thinking="".join(piece.thinking for piece in pieces),
        tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
        final=pieces[-1].final,
        logprobs=tuple(each for piece in pieces for each in piece.logprobs),
    )


def _encode(encoder: TextEncoder, prompt: Prompt) -> tuple[TokenArray, tuple[CutPoint, ...]]:
    """The tokens of a prompt, and where in them snapshots are of use."""
    encoded = encoder.encode(prompt.text)
    tokens, num_before = encoded.tokens, len(prompt.context)
    if num_before:
        tokens = np.concatenate((np.array(prompt.context, np.int32), tokens))
    ends = encoded.num_tokens_in_chars([mark.num_chars for mark in prompt.marks])
    marked = zip(ends, prompt.marks, strict=True)
    return tokens, tuple(CutPoint(num_before + end, mark.kind) for end, mark in marked)


def _context(encoder: TextEncoder, prompt: Prompt, reply_text: str) -> TokenIds:
    """Every token of the earlier context, the prompt and the reply."""
    encoded = encoder.encode(f"{prompt.text}{reply_text}")
    return (*prompt.context, *encoded.tokens.tolist())


def _read_ahead(loaded: LoadedModel, prompt: Prompt, reply_text: str, reply: Message) -> None:
    """Has the engine read, when it is idle, what the next turn's prompt will begin with."""
    next_texts = prompt.next_texts(reply)
    if not next_texts:
        return
    beginning = common_beginning([loaded.encoder.encode(text) for text in next_texts])
    if prompt.is_continued:
        context = np.array(_context(loaded.encoder, prompt, reply_text), np.int32)
        beginning = np.concatenate((context, beginning))
    loaded.engine.read_ahead(beginning, prompt.cache_scope)


def _final(event: FinishedEvent, context: TokenIds, timing: Timing) -> Final:
    return Final(
        reason=event.reason.value,
        stats=event.stats,
        context=context,
        total_ns=time.monotonic_ns() - timing.start_ns,
        load_ns=timing.loaded_ns - timing.start_ns,
        stop=event.stop,
    )


class _Reader:
    """Raw text to pieces: the thought apart from the content, calls of tools apart from both."""

    def __init__(self, prompt: Prompt) -> None:
        self._parser = prompt.reply_parser()
        self._tools = prompt.tool_parser()
        self._pieces: list[Piece] = []
        self._logprobs: list[TokenLogprob] = []  # of no piece yet

    def note(self, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Of tokens whose text comes next; they go out with the next piece."""
        self._logprobs += logprobs

    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those that no piece has taken."""
        taken, self._logprobs = tuple(self._logprobs), []
        return taken

    def message(self) -> Message:
        """What has been read, as a client puts it into the next request."""
        whole = join(self._pieces) if self._pieces else Piece()
        calls = tuple(numbered.call for numbered in whole.tool_calls)
        return Message("assistant", whole.content, tool_calls=calls)

    def push(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        if self._parser is None:
            pieces = [Piece(content=text, logprobs=self.logprobs())] if text else []
        else:
            pieces = self._read(self._parser.push(text))
        self._pieces += pieces
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, when the reply is over."""
        pieces = self._read(self._parser.flush()) if self._parser else []
        if self._tools:
            content, calls = self._tools.flush()
            pieces.append(Piece(content=content, tool_calls=tuple(calls)))
        pieces = [piece for piece in pieces if not piece.is_empty]
        if pieces:
            pieces[0] = replace(pieces[0], logprobs=(*pieces[0].logprobs, *self.logprobs()))
        self._pieces += pieces
        return pieces

    def _read(self, parts: list[ReplyPart]) -> list[Piece]:
        """At most one piece: what came at once goes out at once."""
        thinking = "".join(part.text for part in parts if part.kind is ReplyKind.THINKING)
        content = "".join(part.text for part in parts if part.kind is ReplyKind.CONTENT)
        calls: list[NumberedCall] = []
        if self._tools:
            content, calls = self._tools.push(content)
        piece = Piece(content, thinking, tuple(calls))
        return [] if piece.is_empty else [replace(piece, logprobs=self.logprobs())]
