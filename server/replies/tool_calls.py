"""Tools: the offered ones as the prompt wants them, and calls found in a reply."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rwkv_core.chat.messages import ToolCall
from rwkv_core.chat.prompt_format import ToolFormat
from rwkv_core.chat.reply import overlap
from server.wire import schemas

_ID_LETTERS = string.ascii_lowercase + string.digits
_ID_LENGTH = 8


def offered_tool(tool: schemas.Tool) -> dict[str, Any]:
    """The tool as JSON again, holding only what Ollama reads and the client gave."""
    value = tool.model_dump(exclude_unset=True, by_alias=True)
    for schema in _schemas(value.get("function", {}).get("parameters", {})):
        kinds = schema.get("type")
        if isinstance(kinds, list) and len(kinds) == 1:
            schema["type"] = kinds[0]
    return value


def called(call: schemas.ToolCall) -> ToolCall:
    """A call in an earlier turn."""
    return ToolCall(call.function.name, call.function.arguments, call.id)


def new_call_id() -> str:
    return "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


def tool_call_json(numbered: NumberedCall) -> dict[str, Any]:
    """A call as it goes out."""
    name, arguments = numbered.call.name, dict(numbered.call.arguments)
    function = {"index": numbered.index, "name": name, "arguments": arguments}
    return {"id": numbered.id, "function": function}


@dataclass(frozen=True)
class NumberedCall:
    """A call in a reply; the first one has index 0. `id` is what its client knows it by."""

    index: int
    call: ToolCall
    id: str = field(default_factory=new_call_id, compare=False)


class ToolCallParser:
    """Finds calls in a reply's content: fences that hold {"name": …, "arguments": {…}}.

    Text passes through until a fence begins; a fence is held back until it closes or the reply
    ends. What turns out to be no call of an offered tool is text after all.
    """

    def __init__(self, fmt: ToolFormat, names: Sequence[str], *, is_open: bool = False) -> None:
        """`is_open`: the prompt has already opened the fence, to force a call."""
        self._open = fmt.call_open
        self._close = fmt.call_close
        self._names = frozenset(names)
        self._num_calls = 0
        self._held = ""
        self._is_inside = is_open
        self._is_after_call = False  # the white space there belongs to the call

    def push(self, text: str) -> tuple[str, list[NumberedCall]]:
        """Takes the next piece of content; returns the text and the calls that are now certain."""
        self._held += text
        texts: list[str] = []
        calls: list[NumberedCall] = []
        while self._step(texts, calls):
            pass
        return "".join(texts), calls

    def flush(self) -> tuple[str, list[NumberedCall]]:
        """The reply is over: an open fence may still hold a whole call, the rest is text."""
        held, self._held = self._held, ""
        if not self._is_inside:
            return held, []
        self._is_inside = False
        call = self._read_call(held)
        return ("", [call]) if call else (f"{self._open}{held}", [])

    def _step(self, texts: list[str], calls: list[NumberedCall]) -> bool:
        if self._is_inside:
            body, closing, rest = self._held.partition(f"\n{self._close}")
            if not closing:
                return False
            call = self._read_call(body)
            if call:
                calls.append(call)
                self._is_after_call = True
            else:
                texts.append(f"{self._open}{body}{closing}")
            self._held, self._is_inside = rest, False
            return True
        if self._is_after_call:
            self._held = self._held.lstrip()
            self._is_after_call = not self._held
        before, opening, rest = self._held.partition(self._open)
        if opening:
            texts.append(before)
            self._held, self._is_inside = rest, True
            return True
        certain = len(before) - overlap(before, self._open)
        texts.append(before[:certain])
        self._held = before[certain:]
        return False

    def _read_call(self, body: str) -> NumberedCall | None:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, Mapping):
            return None
        name, arguments = value.get("name"), value.get("arguments", {})
        if name not in self._names or not isinstance(arguments, Mapping):
            return None
        self._num_calls += 1
        return NumberedCall(self._num_calls - 1, ToolCall(name, arguments))


def _schemas(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON schemas of all properties below `schema`, at any depth."""
    found: list[dict[str, Any]] = []
    for each in [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]:
        found += [each, *_schemas(each)]
    return found
