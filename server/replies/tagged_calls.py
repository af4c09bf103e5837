"""Calls of tools in replies to a model's own template, which shows only what a call begins with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rwkv_core.chat.messages import ToolCall
from rwkv_core.chat.reply import overlap
from server.replies.tool_calls import NumberedCall

# A tag that is itself JSON begins a call only at the beginning of a reply.
_JSON_TAGS = ("{", "[")
# The names that models use for the two parts of a call.
_ARGUMENTS = ("arguments", "parameters")
# What may stand between and behind calls, beside closing tags.
_BETWEEN = re.compile(r"[\s,;\[\]]*")


class TaggedCallParser:
    """Text passes through until the tag comes; what follows is held back.

    Every JSON object in it that names an offered tool is a call. Without any, all of it is text
    after all.
    """

    def __init__(self, tag: str, names: Sequence[str]) -> None:
        self._tag = tag
        self._names = frozenset(names)
        self._num_calls = 0
        self._held = ""
        self._is_inside = False
        self._has_text = False
        self._is_over = False  # no call can come any more
        # Of the held text: what has been looked at, and where the object begins that it is in.
        self._at, self._start = 0, -1
        self._depth, self._is_string, self._is_escaped = 0, False, False

    def push(self, text: str) -> tuple[str, list[NumberedCall]]:
        """Takes the next piece of content; returns the text and the calls that are now certain."""
        if self._is_over:
            return text, []
        self._held += text
        before = "" if self._is_inside else self._pass_text()
        return before, list(self._read_calls()) if self._is_inside else []

    def flush(self) -> tuple[str, list[NumberedCall]]:
        """The reply is over: what is held is text, unless there were calls."""
        held, self._held = self._held, ""
        return ("", []) if self._num_calls else (held, [])

    def _pass_text(self) -> str:
        """The text before the tag, or before what may become one."""
        at = self._held.find(self._tag)
        self._is_inside = at >= 0
        end = at if self._is_inside else len(self._held) - overlap(self._held, self._tag)
        before, self._held = self._held[:end], self._held[end:]
        self._has_text = self._has_text or bool(before.strip())
        if self._tag in _JSON_TAGS and self._has_text:
            self._is_over, self._is_inside = True, False
            before, self._held = before + self._held, ""
        return before

    def _read_calls(self) -> Iterator[NumberedCall]:
        """The calls whose JSON is complete."""
        while self._find_object():
            start, end = self._start, self._at
            self._start = -1
            call = self._call(_parsed(self._held[start:end]))
            if call is not None:
                self._held, self._at = self._held[self._behind(end) :], 0
                yield call

    def _find_object(self) -> bool:
        """Goes on to the end of an object; no character is looked at twice."""
        if self._start < 0:
            self._start = self._held.find("{", self._at)
            self._at = self._start if self._start >= 0 else len(self._held)
            self._depth, self._is_string, self._is_escaped = 0, False, False
        while self._at < len(self._held):
            char = self._held[self._at]
            self._at += 1
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped, self._is_string = char == "\\", char != '"'
            elif char == '"':
                self._is_string = True
            else:
                self._depth += (char in "{[") - (char in "}]")
                if self._depth <= 0:
                    return True
        return False

    def _behind(self, end: int) -> int:
        between = _BETWEEN.match(self._held, end)
        return between.end() if between else end

    def _call(self, value: Any) -> NumberedCall | None:
        if not isinstance(value, Mapping):
            return None
        inner = value.get("function")
        value = inner if isinstance(inner, Mapping) else value
        name = value.get("name")
        arguments: Any = next((value[key] for key in _ARGUMENTS if key in value), {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        if name not in self._names or not isinstance(arguments, Mapping):
            return None
        self._num_calls += 1
        return NumberedCall(self._num_calls - 1, ToolCall(str(name), arguments))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
