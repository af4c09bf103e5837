"""The reply to `/v1/messages`: content blocks, and the events that build them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from sse_starlette import ServerSentEvent

from server.anthropic.errors import anthropic_error
from server.replies.generation import Final, Piece
from server.replies.tool_calls import NumberedCall, tool_call_json
from server.wire.answers import Json
from server.wire.event_stream import event
from server.wire.reply_ids import new_id

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}

_CHARS_PER_TOKEN = 4

# A block's text, and what a piece of it is called, by the block's type.
_TEXT_FIELDS = {"text": ("text", "text_delta"), "thinking": ("thinking", "thinking_delta")}


class MessageWriter:
    """Implements `ReplyWriter`. One block is open at a time; what is of another type closes it."""

    def __init__(self, model: str, stops: Sequence[str], num_prompt_chars: int) -> None:
        self._model = model
        self._stops = frozenset(stops)
        self._num_prompt_chars = num_prompt_chars
        self._id = new_id("msg")
        self._has_begun = False
        self._has_called = False
        self._num_closed = 0
        self._open = ""  # the type of the block that is open

    def whole(self, piece: Piece) -> Json:
        assert piece.final is not None  # a whole reply is over
        content: list[Json] = []
        if piece.thinking:
            content.append(_text_block("thinking", piece.thinking))
        if piece.content:
            content.append(_text_block("text", piece.content))
        for call in piece.tool_calls:
            block, arguments = _call_block(call)
            content.append(block | {"input": arguments})
        self._has_called = bool(piece.tool_calls)
        return self._message(content) | self._ending(piece.final) | {"usage": _usage(piece.final)}

    def events(self, piece: Piece) -> Iterator[ServerSentEvent]:
        if not self._has_begun:
            self._has_begun = True
            # An estimate, as Ollama's: the true counts come with the end of the reply.
            num_tokens = max(1, self._num_prompt_chars // _CHARS_PER_TOKEN)
            usage = {"input_tokens": num_tokens, "output_tokens": 0}
            message = self._message([]) | {"usage": usage}
            yield _event("message_start", message=message)
        if piece.thinking:
            yield from self._write("thinking", piece.thinking)
        if piece.content:
            yield from self._write("text", piece.content)
        for call in piece.tool_calls:
            yield from self._call(call)
        if piece.final:
            yield from self._close()
            ending, usage = self._ending(piece.final), _usage(piece.final)
            yield _event("message_delta", delta=ending, usage=usage)
            yield _event("message_stop")

    def failed(self, status: int, message: str) -> Iterator[ServerSentEvent]:
        yield event(anthropic_error(status, message), "error")

    def ping(self) -> ServerSentEvent:
        return _event("ping")

    def _write(self, kind: str, text: str) -> Iterator[ServerSentEvent]:
        if self._open != kind:
            yield from self._close()
            self._open = kind
            yield self._block_event("start", content_block=_text_block(kind, ""))
        field, delta = _TEXT_FIELDS[kind]
        yield self._block_event("delta", delta={"type": delta, field: text})

    def _call(self, numbered: NumberedCall) -> Iterator[ServerSentEvent]:
        yield from self._close()
        self._has_called = True
        block, arguments = _call_block(numbered)
        self._open = "tool_use"
        yield self._block_event("start", content_block=block)
        text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        yield self._block_event("delta", delta={"type": "input_json_delta", "partial_json": text})
        yield from self._close()

    def _close(self) -> Iterator[ServerSentEvent]:
        if self._open:
            yield self._block_event("stop")
            self._open = ""
            self._num_closed += 1

    def _block_event(self, what: str, **fields: Json) -> ServerSentEvent:
        return _event(f"content_block_{what}", index=self._num_closed, **fields)

    def _message(self, content: list[Json]) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _ending(self, final: Final) -> Json:
        stop = final.stop if final.stop in self._stops else None
        reason = "stop_sequence" if stop else _STOP_REASONS.get(final.reason, "end_turn")
        if self._has_called:
            reason, stop = "tool_use", None
        return {"stop_reason": reason, "stop_sequence": stop}


def _event(kind: str, **fields: Json | int) -> ServerSentEvent:
    return event({"type": kind} | fields, kind)


def _text_block(kind: str, text: str) -> Json:
    field, _ = _TEXT_FIELDS[kind]
    # Clients want a thought to be signed, and send the signature back with it; nobody checks ours.
    signature = {"signature": ""} if kind == "thinking" else {}
    return {"type": kind, field: text} | signature


def _call_block(numbered: NumberedCall) -> tuple[Json, Json]:
    """A call as it opens, and its arguments."""
    call = tool_call_json(numbered)
    function = call["function"]
    block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
    return block, function["arguments"]


def _usage(final: Final) -> Json:
    """Anthropic counts apart what was read again and what was not: together they are the prompt."""
    stats = final.stats
    return {
        "input_tokens": stats.num_prompt_tokens - stats.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stats.num_cached_tokens,
        "output_tokens": stats.num_generated_tokens,
    }
