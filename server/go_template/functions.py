"""The functions that a template may call: Go's own and Ollama's."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote_plus

from server.go_template.errors import ExecutionError
from server.go_template.format_reader import padded_length
from server.go_template.json_text import json_text
from server.go_template.limits import Budget
from server.go_template.printf import formatted, num_leaves
from server.go_template.printing import concatenated, plain_text
from server.go_template.values import (
    Byte,
    Record,
    ValueDepthError,
    decode,
    encode,
    is_list,
    is_map,
    is_nil,
    is_true,
    type_name,
)


@dataclass(frozen=True)
class Function:
    """Takes `num_fixed` arguments, and any number more if `is_variadic`.

    `num_texts` of them, from the first on, must be texts (-1: all).
    """

    name: str
    call: Callable[..., Any]
    num_fixed: int
    is_variadic: bool = False
    num_texts: int = 0

    def wants_text(self, index: int) -> bool:
        return self.num_texts < 0 or index < self.num_texts

    def check_count(self, num_given: int, num_written: int) -> None:
        """`num_written` leaves out the value that a pipeline hands on."""
        if self.is_variadic:
            if num_given < self.num_fixed:
                raise ExecutionError(
                    f"wrong number of args for {self.name}: "
                    f"want at least {self.num_fixed} got {num_written}"
                )
        elif num_given != self.num_fixed:
            raise ExecutionError(
                f"wrong number of args for {self.name}: want {self.num_fixed} got {num_given}"
            )

    def __call__(self, budget: Budget, *arguments: Any) -> Any:
        """Raises ExecutionError, and TemplateError when the budget is used up."""
        try:
            return self.call(budget, *arguments)
        except ExecutionError as error:
            raise ExecutionError(f"error calling {self.name}: {error}") from None
        except ValueDepthError:
            problem = f"error calling {self.name}: a value is nested too deep"
            raise ExecutionError(problem) from None


# Characters that one becomes at most: %F0%9F%98%80 in a URL.
_MAX_ESCAPE = 12

# Indexing


def _index(budget: Budget, item: Any, *indexes: Any) -> Any:
    if is_nil(item):
        raise ExecutionError("index of untyped nil")
    for index in indexes:
        if is_nil(item):
            raise ExecutionError("index of nil pointer")
        if isinstance(item, str):
            data = _bytes(budget, item)
            item = Byte(data[_checked_index(index, len(data), is_last_valid=False)])
        elif is_list(item):
            item = item[_checked_index(index, len(item), is_last_valid=False)]
        elif is_map(item):
            if is_nil(index):
                raise ExecutionError("value is nil; should be of type string")
            if not isinstance(index, str):
                raise ExecutionError(f"value has type {type_name(index)}; should be string")
            item = item.get(index)
        else:
            raise ExecutionError(f"can't index item of type {type_name(item)}")
    return item


def _slice(budget: Budget, item: Any, *indexes: Any) -> Any:
    if is_nil(item):
        raise ExecutionError("slice of untyped nil")
    if len(indexes) > 3:
        raise ExecutionError(f"too many slice indexes: {len(indexes)}")
    if isinstance(item, str):
        if len(indexes) == 3:
            raise ExecutionError("cannot 3-index slice a string")
        data = _bytes(budget, item)
        start, end = _slice_bounds(indexes, len(data))
        return decode(data[start:end])
    if not is_list(item):
        raise ExecutionError(f"can't slice item of type {type_name(item)}")
    start, end = _slice_bounds(indexes, len(item))
    budget.read(end - start)
    return item[start:end]


def _slice_bounds(indexes: tuple[Any, ...], length: int) -> tuple[int, int]:
    bounds = [0, length, length]
    for i, index in enumerate(indexes):
        bounds[i] = _checked_index(index, length)
    for low, high in pairwise(bounds):
        if low > high:
            raise ExecutionError(f"invalid slice index: {low} > {high}")
    return bounds[0], bounds[1]


def _checked_index(index: Any, length: int, *, is_last_valid: bool = True) -> int:
    if is_nil(index):
        raise ExecutionError("cannot index slice/array with nil")
    if isinstance(index, bool) or not isinstance(index, int):
        raise ExecutionError(f"cannot index slice/array with type {type_name(index)}")
    if not 0 <= index < length + is_last_valid:
        raise ExecutionError(f"index out of range: {int(index)}")
    return int(index)


def _length(budget: Budget, item: Any) -> int:
    if is_nil(item):
        raise ExecutionError("len of nil pointer")
    if isinstance(item, str):
        return len(item) if item.isascii() else len(_bytes(budget, item))
    if is_list(item) or is_map(item):
        return len(item)
    raise ExecutionError(f"len of type {type_name(item)}")


def _bytes(budget: Budget, text: str) -> bytes:
    budget.read(len(text))
    return encode(text)


# Comparisons


def _basic_kind(value: Any) -> str:
    """Values of different kinds do not compare; "" for what has no kind."""
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "string")):
        if isinstance(value, kind):
            return name
    return ""


def _equal(budget: Budget, first: Any, *others: Any) -> bool:
    if not others:
        raise ExecutionError("missing argument for comparison")
    kind = _basic_kind(first)
    for other in others:
        if kind != _basic_kind(other):
            if not is_nil(first) and not is_nil(other):
                raise ExecutionError(_incompatible(first, other))
        elif not kind:
            if _equal_nils(first, other):
                return True
        else:
            budget.read(len(first) if isinstance(first, str) else 0)
            if first == other:
                return True
    return False


def _equal_nils(first: Any, other: Any) -> bool:
    """Of values without a kind only nils can be equal."""
    if is_nil(first) or is_nil(other):
        return is_nil(first) == is_nil(other)
    raise ExecutionError(f"non-comparable types {type_name(first)}, {type_name(other)}")


def _not_equal(budget: Budget, first: Any, other: Any) -> bool:
    return not _equal(budget, first, other)


def _less(budget: Budget, first: Any, other: Any) -> bool:
    kinds = _basic_kind(first), _basic_kind(other)
    if not all(kinds):
        raise ExecutionError("invalid type for comparison")
    if kinds[0] != kinds[1]:
        raise ExecutionError(_incompatible(first, other))
    if kinds[0] == "bool":
        raise ExecutionError("invalid type for comparison")
    if isinstance(first, str):
        return _bytes(budget, first) < _bytes(budget, other)
    return bool(first < other)


def _less_or_equal(budget: Budget, first: Any, other: Any) -> bool:
    return _less(budget, first, other) or _equal(budget, first, other)


def _greater(budget: Budget, first: Any, other: Any) -> bool:
    return not _less_or_equal(budget, first, other)


def _greater_or_equal(budget: Budget, first: Any, other: Any) -> bool:
    return not _less(budget, first, other)


def _incompatible(first: Any, other: Any) -> str:
    return f"incompatible types for comparison: {type_name(first)} and {type_name(other)}"


# Text


def _made(budget: Budget, text: str) -> str:
    budget.make(len(text))
    return text


def _print(budget: Budget, *values: Any) -> str:
    return _made(budget, concatenated(values))


def _println(budget: Budget, *values: Any) -> str:
    return _made(budget, " ".join(map(plain_text, values)) + "\n")


def _printf(budget: Budget, form: str, *values: Any) -> str:
    # Paid for in advance: a list is written item by item, each with the width of its verb.
    budget.make(padded_length(form, values) * max(map(num_leaves, values), default=1))
    return _made(budget, formatted(form, values, budget.make))


def _escapable(budget: Budget, values: tuple[Any, ...]) -> str:
    text = _print(budget, *("<no value>" if is_nil(each) else each for each in values))
    budget.make(_MAX_ESCAPE * len(text))
    return text


def _html(budget: Budget, *values: Any) -> str:
    return _escapable(budget, values).translate(_HTML)


def _js(budget: Budget, *values: Any) -> str:
    return "".join(map(_js_char, _escapable(budget, values)))


def _js_char(char: str) -> str:
    if char in _JS:
        return _JS[char]
    if char.isprintable():
        return char
    return f"\\u{ord(char):04X}"


def _urlquery(budget: Budget, *values: Any) -> str:
    return quote_plus(encode(_escapable(budget, values)))


_HTML = str.maketrans(
    {"'": "&#39;", '"': "&#34;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"}
)
_JS = {
    "\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026",
    "=": "\\u003D",
}  # fmt: skip


# Ollama's own


def _json(budget: Budget, value: Any) -> str:
    return _made(budget, json_text(value))


def _current_date(_: Budget, *ignored: str) -> str:
    return datetime.date.today().isoformat()


def _yesterday_date(_: Budget, *ignored: str) -> str:
    return (datetime.date.today() - datetime.timedelta(days=1)).isoformat()


_TYPESCRIPT = {
    "string": "string", "number": "number", "integer": "number", "boolean": "boolean",
    "array": "any[]", "object": "Record<string, any>", "null": "null",
}  # fmt: skip
# Of a schema that is read for its type only; deeper ones are not looked at.
_MAX_CHOICE_DEPTH = 50


def _typescript_type(_: Budget, value: Any) -> str:
    return _typescript(value, 0)


def _typescript(value: Any, depth: int) -> str:
    """The type of a tool's property, of which AnyOf and Type are read."""
    if not isinstance(value, Record) or depth > _MAX_CHOICE_DEPTH:
        return "any"
    choices = value.get("AnyOf") or []
    if choices:
        return " | ".join(_typescript(choice, depth + 1) for choice in choices)
    kinds = value.get("Type") or ["any"]
    return " | ".join(_TYPESCRIPT.get(kind, "any") for kind in kinds)


def _never(*_: Any) -> Any:
    """`and` and `or` evaluate their own arguments; `call` has nothing that it could call."""
    raise ExecutionError("call of nil")


_ALL = (
    Function("and", _never, 1, is_variadic=True),
    Function("or", _never, 1, is_variadic=True),
    Function("call", _never, 1, is_variadic=True),
    Function("not", lambda _, value: not is_true(value), 1),
    Function("len", _length, 1),
    Function("index", _index, 1, is_variadic=True),
    Function("slice", _slice, 1, is_variadic=True),
    Function("eq", _equal, 1, is_variadic=True),
    Function("ne", _not_equal, 2),
    Function("lt", _less, 2),
    Function("le", _less_or_equal, 2),
    Function("gt", _greater, 2),
    Function("ge", _greater_or_equal, 2),
    Function("print", _print, 0, is_variadic=True),
    Function("println", _println, 0, is_variadic=True),
    Function("printf", _printf, 1, is_variadic=True, num_texts=1),
    Function("html", _html, 0, is_variadic=True),
    Function("js", _js, 0, is_variadic=True),
    Function("urlquery", _urlquery, 0, is_variadic=True),
    Function("json", _json, 1),
    Function("currentDate", _current_date, 0, is_variadic=True, num_texts=-1),
    Function("yesterdayDate", _yesterday_date, 0, is_variadic=True, num_texts=-1),
    Function("toTypeScriptType", _typescript_type, 1),
)
FUNCTIONS: Mapping[str, Function] = {each.name: each for each in _ALL}
