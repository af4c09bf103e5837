"""Go's values in Python's: their types by Go's names, their truth, and their text.

Text, numbers, booleans, lists and mappings stand for themselves. `None` is a nil inside data, such
as a key that is not there; `INVALID` is what it becomes once a pipeline has taken it out: Go treats
the two differently when a field of them is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final


class Invalid:
    """The type of `INVALID`: no value at all."""

    def __repr__(self) -> str:
        return "INVALID"


INVALID: Final = Invalid()


class Byte(int):
    """A character of a text, as `index` gives it."""


class Record(dict[str, Any]):
    """A Go struct: it has exactly these fields, and is always true.

    `json_value` is what the function json makes of it, in Go a matter of the fields' tags;
    `prints_json` whether it is written as JSON by itself, too.
    """

    __slots__ = ("json_value", "prints_json", "type_name")

    def __init__(
        self,
        type_name: str,
        fields: Mapping[str, Any],
        json_value: Any = None,
        *,
        prints_json: bool = False,
    ) -> None:
        super().__init__(fields)
        self.type_name = type_name
        self.json_value = dict(fields) if json_value is None else json_value
        self.prints_json = prints_json


class JsonList(list[Any]):
    """A list that is written as JSON."""


class JsonMap(dict[str, Any]):
    """A mapping that is written as JSON."""


class OneOrMore(list[str]):
    """A list that is written without brackets when it has one item."""


class ValueDepthError(Exception):
    """A value whose parts lie too deep inside each other."""


def prints_json(value: Any) -> bool:
    if isinstance(value, Record):
        return value.prints_json
    return isinstance(value, JsonList | JsonMap)


def is_nil(value: Any) -> bool:
    return value is None or value is INVALID


def is_map(value: Any) -> bool:
    return isinstance(value, Mapping) and not isinstance(value, Record)


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def type_name(value: Any) -> str:
    """What Go calls the type of a value."""
    if isinstance(value, Record):
        return value.type_name
    for kind, name in _TYPE_NAMES:
        if isinstance(value, kind):
            return name
    return "<nil>"


_TYPE_NAMES: Final[tuple[tuple[type, str], ...]] = (
    (bool, "bool"),
    (Byte, "uint8"),
    (int, "int"),
    (float, "float64"),
    (str, "string"),
    (Mapping, "map[string]interface {}"),
    (list, "[]interface {}"),
    (tuple, "[]interface {}"),
)


def is_true(value: Any) -> bool:
    return isinstance(value, Record) or (value is not INVALID and bool(value))


def sorted_items(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """In Go's order, which is that of the keys' bytes."""
    return iter(sorted(value.items(), key=lambda item: encode(item[0])))


def encode(text: str) -> bytes:
    """The bytes that Go sees."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    """The text of bytes, of which a slice may have cut a character."""
    return data.decode("utf-8", "replace")
