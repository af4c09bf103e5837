"""The reply to `/v1/responses`: items, and the events that build them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from sse_starlette import ServerSentEvent

from server.openai.chat_writer import call_json
from server.openai.responses_schemas import ResponsesRequest
from server.replies.generation import Final, Piece
from server.replies.tool_calls import NumberedCall
from server.wire.answers import Json
from server.wire.event_stream import comment, event
from server.wire.reply_ids import new_id


class ResponsesWriter:
    """Implements `ReplyWriter`.

    A reply is a list of items: a thought, a message, calls. One of them is open at a time, and its
    text grows; what is of another kind closes it.
    """

    def __init__(self, asked: ResponsesRequest) -> None:
        self._asked = asked
        self._id = new_id("resp")
        self._created = int(time.time())
        self._num_events = 0
        self._items: list[Json] = []  # those that are closed
        self._open: _TextItem | None = None

    def whole(self, piece: Piece) -> Json:
        for _ in self.events(piece):
            pass
        assert piece.final is not None  # a whole reply is over
        return self._finished(piece.final)

    def events(self, piece: Piece) -> Iterator[ServerSentEvent]:
        if not self._num_events:
            for name in ("created", "in_progress"):
                yield self._event(f"response.{name}", response=self._response("in_progress"))
        if piece.thinking:
            yield from self._write(_Thought, piece.thinking)
        if piece.content:
            yield from self._write(_Message, piece.content)
        for call in piece.tool_calls:
            yield from self._close()
            yield from self._call(call)
        if piece.final:
            if not (self._items or self._open):
                yield from self._write(_Message, "")
            yield from self._close()
            yield self._event("response.completed", response=self._finished(piece.final))

    def failed(self, status: int, message: str) -> Iterator[ServerSentEvent]:
        code = "server_error" if status >= 500 else "invalid_request_error"
        response = self._response("failed") | {"error": {"code": code, "message": message}}
        yield self._event("response.failed", response=response)

    def ping(self) -> ServerSentEvent:
        return comment("ping")

    def _write(self, kind: type[_TextItem], text: str) -> Iterator[ServerSentEvent]:
        if not isinstance(self._open, kind):
            yield from self._close()
            self._open = kind(len(self._items))
            for name, fields in self._open.opening():
                yield self._event(name, **fields)
        if text:
            self._open.text += text
            name, fields = self._open.delta(text)
            yield self._event(name, **fields)

    def _close(self) -> Iterator[ServerSentEvent]:
        if self._open:
            item = self._open.item()
            for name, fields in self._open.closing():
                yield self._event(name, **fields)
            yield self._event("response.output_item.done", output_index=self._open.index, item=item)
            self._items.append(item)
            self._open = None

    def _call(self, numbered: NumberedCall) -> Iterator[ServerSentEvent]:
        call = call_json(numbered)
        item: Json = {
            "id": new_id("fc"),
            "type": "function_call",
            "status": "completed",
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        }
        where = {"item_id": item["id"], "output_index": len(self._items)}
        begun = item | {"status": "in_progress", "arguments": ""}
        index = len(self._items)
        yield self._event("response.output_item.added", output_index=index, item=begun)
        name = "response.function_call_arguments"
        yield self._event(f"{name}.delta", **where, delta=item["arguments"])
        yield self._event(f"{name}.done", **where, name=item["name"], arguments=item["arguments"])
        yield self._event("response.output_item.done", output_index=index, item=item)
        self._items.append(item)

    def _event(self, kind: str, **fields: Any) -> ServerSentEvent:
        value: Json = {"type": kind, "sequence_number": self._num_events} | fields
        self._num_events += 1
        return event(value, kind)

    def _finished(self, final: Final) -> Json:
        """The response at its end. One that was cut says so; its last event is the usual one."""
        is_cut = final.reason == "length"
        response = self._response("incomplete" if is_cut else "completed")
        if is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return response | {"completed_at": int(time.time()), "usage": _usage(final)}

    def _response(self, status: str) -> Json:
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "incomplete_details": None,
            "model": asked.model,
            "previous_response_id": None,
            "instructions": asked.instructions or None,
            "output": list(self._items),
            "error": None,
            "tools": [_tool_json(tool.model_dump(exclude_unset=True)) for tool in asked.tools],
            "tool_choice": "auto",
            "truncation": asked.truncation or "disabled",
            "parallel_tool_calls": True,
            "text": {"format": _text_format(asked)},
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "reasoning": _reasoning(asked),
            "usage": None,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "store": False,
            "background": asked.background,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


_Fields = tuple[str, Json]  # an event's name and what it holds


class _TextItem(ABC):
    """An item whose text comes piece by piece."""

    prefix: ClassVar[str]  # of its id

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = new_id(self.prefix)
        self.text = ""

    @abstractmethod
    def opening(self) -> list[_Fields]:
        """The events before its text."""

    @abstractmethod
    def delta(self, text: str) -> _Fields:
        """The event of a piece of its text."""

    @abstractmethod
    def closing(self) -> list[_Fields]:
        """The events between its text and its end."""

    @abstractmethod
    def item(self) -> Json:
        """The item with all of its text."""

    def _added(self, item: Json) -> _Fields:
        return "response.output_item.added", {"output_index": self.index, "item": item}

    def _where(self, kind: str) -> Json:
        """`kind` is what the parts of the item are called."""
        return {"item_id": self.id, "output_index": self.index, f"{kind}_index": 0}


class _Thought(_TextItem):
    prefix: ClassVar[str] = "rs"

    def opening(self) -> list[_Fields]:
        return [self._added({"id": self.id, "type": "reasoning", "summary": []})]

    def delta(self, text: str) -> _Fields:
        return "response.reasoning_summary_text.delta", self._where("summary") | {"delta": text}

    def closing(self) -> list[_Fields]:
        done = self._where("summary") | {"text": self.text}
        return [("response.reasoning_summary_text.done", done)]

    def item(self) -> Json:
        # Clients send the item back as it is; nothing in it needs to be hidden from them.
        summary = [{"type": "summary_text", "text": self.text}]
        return {
            "id": self.id,
            "type": "reasoning",
            "summary": summary,
            "encrypted_content": self.text,
        }


class _Message(_TextItem):
    prefix: ClassVar[str] = "msg"

    def opening(self) -> list[_Fields]:
        added = self.item() | {"status": "in_progress", "content": []}
        part = self._where("content") | {"part": self._part()}
        return [self._added(added), ("response.content_part.added", part)]

    def delta(self, text: str) -> _Fields:
        fields = self._where("content") | {"delta": text, "logprobs": []}
        return "response.output_text.delta", fields

    def closing(self) -> list[_Fields]:
        where = self._where("content")
        return [
            ("response.output_text.done", where | {"text": self.text, "logprobs": []}),
            ("response.content_part.done", where | {"part": self._part()}),
        ]

    def item(self) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [self._part()],
        }

    def _part(self) -> Json:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}


def _usage(final: Final) -> Json:
    num_prompt, num_generated = final.stats.num_prompt_tokens, final.stats.num_generated_tokens
    return {
        "input_tokens": num_prompt,
        "output_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
        "input_tokens_details": {
            "cached_tokens": final.stats.num_cached_tokens,
            "cache_write_tokens": 0,
        },
        # Nobody counts which of them were thought; Ollama says 0 too.
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _tool_json(tool: Json) -> Json:
    """A tool as the client sent it, with the fields that OpenAI's clients insist on."""
    return {"strict": None, "description": None, "parameters": None} | tool


def _text_format(asked: ResponsesRequest) -> Json:
    given = asked.text.format if asked.text else None
    return given.model_dump(exclude_unset=True, by_alias=True) if given else {"type": "text"}


def _reasoning(asked: ResponsesRequest) -> Json | None:
    effort, summary = asked.reasoning.effort or None, asked.reasoning.summary or None
    return {"effort": effort, "summary": summary} if effort or summary else None
