"""Values as Go's fmt writes them without a format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.go_template.json_text import json_text
from server.go_template.values import (
    OneOrMore,
    Record,
    ValueDepthError,
    is_list,
    is_nil,
    prints_json,
    sorted_items,
)
from server.wire.go_text import go_float

# Data that go deeper than this are refused rather than written.
_MAX_VALUE_DEPTH = 100


def plain_text(value: Any) -> str:
    """A value as `{{.}}` and %v write it. Raises ValueDepthError."""
    parts: list[str] = []

    def write(each: Any, depth: int) -> None:
        if depth > _MAX_VALUE_DEPTH:
            raise ValueDepthError
        if isinstance(each, str):
            parts.append(each)
        elif prints_json(each):
            parts.append(json_text(each))
        elif isinstance(each, Record):
            write_all("{", each.values(), "}", depth)
        elif isinstance(each, Mapping):
            parts.append("map[")
            for i, (key, item) in enumerate(sorted_items(each)):
                parts.append(f"{' ' if i else ''}{key}:")
                write(item, depth + 1)
            parts.append("]")
        elif isinstance(each, OneOrMore) and len(each) <= 1:
            parts.extend(each)
        elif is_list(each):
            write_all("[", each, "]", depth)
        else:
            parts.append(_scalar_text(each))

    def write_all(opening: str, items: Any, closing: str, depth: int) -> None:
        parts.append(opening)
        for i, item in enumerate(items):
            parts.append(" " if i else "")
            write(item, depth + 1)
        parts.append(closing)

    write(value, 0)
    return "".join(parts)


def _scalar_text(value: Any) -> str:
    if is_nil(value):
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return go_float(value)
    return str(int(value)) if isinstance(value, int) else str(value)


def concatenated(values: Sequence[Any]) -> str:
    """What `print` writes: a space between two values of which neither is a text."""
    parts: list[str] = []
    for i, value in enumerate(values):
        if i and not isinstance(value, str) and not isinstance(values[i - 1], str):
            parts.append(" ")
        parts.append(plain_text(value))
    return "".join(parts)
