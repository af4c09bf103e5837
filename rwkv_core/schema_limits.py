"""What a JSON schema may ask of the compiler, whose recursion would end the process beyond it.

Its numbers are doubles, so that a larger integer becomes another one. It negates 64-bit integers,
and recurses without an end over the smallest, which has no opposite. It compiles what a schema
refers to inside the compiling of the schema, on one stack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from rwkv_core.errors import GrammarError

MAX_SCHEMA_CHARS = 1 << 20
# Of values in values. Together with the next limit: the compiler stacks up at most 64 levels for
# each of 300 references, for which `run_with_large_stack` has room twice.
MAX_DEPTH = 64
MAX_REFERENCES = 300
MAX_PATTERN_CHARS = 10_000
# Above it doubles skip integers.
MAX_INTEGER = 1 << 53
# Of the digits of `multipleOf`, without the point: the compiler has a state for each remainder. It
# brings several of them together, and a large one takes it hours.
MAX_MULTIPLE = 10_000
# Powers of ten up to it are exact as doubles, so that reading a number rounds at most once.
_MAX_EXPONENT = 22

# Keywords whose numbers, at any depth below them, say which numbers a reply may hold.
_EXACT_KEYS = frozenset(
    {"const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)
_REFERENCE_KEYS = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})


class _Node(NamedTuple):
    """A value in a schema."""

    value: Any
    key: str  # the nearest name above it
    depth: int
    is_exact: bool  # below a keyword of `_EXACT_KEYS`


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises GrammarError, naming the limit, for a schema that the compiler cannot be given."""
    references: set[str] = set()
    multiple = 1
    for value, key, depth, is_exact in _nodes(schema):
        if depth > MAX_DEPTH:
            raise GrammarError(f"it is nested too deep: at most {MAX_DEPTH} levels")
        if isinstance(value, str):
            _check_text(value, key)
            if key in _REFERENCE_KEYS:
                references.add(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(value, is_exact)
            if key == "multipleOf":
                significand, exponent = _digits(value)
                multiple = math.lcm(multiple, significand * 10 ** max(exponent, 0))
                _check_multiple(value, multiple)
    if len(references) > MAX_REFERENCES:
        raise GrammarError(f"it has too many different references: at most {MAX_REFERENCES}")


def _nodes(schema: Mapping[str, Any]) -> Iterator[_Node]:
    """Every value, and every name as a value of its own; without recursion."""
    waiting = [_Node(schema, "", 1, False)]
    while waiting:
        node = waiting.pop()
        yield node
        value, key, depth, is_exact = node
        if depth > MAX_DEPTH:
            continue
        if isinstance(value, Mapping):
            for name, inner in value.items():
                name_key = "pattern" if key == "patternProperties" else ""
                waiting.append(_Node(name, name_key, depth, False))
                waiting.append(_Node(inner, name, depth + 1, is_exact or name in _EXACT_KEYS))
        elif isinstance(value, list | tuple):
            waiting += (_Node(inner, key, depth + 1, is_exact) for inner in value)


def _check_text(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError("it holds half of a surrogate pair, which is no character") from None
    if key == "pattern" and len(text) > MAX_PATTERN_CHARS:
        raise GrammarError(f"a pattern in it is too long: at most {MAX_PATTERN_CHARS} characters")


def _check_number(number: int | float, is_exact: bool) -> None:
    if isinstance(number, float) and not math.isfinite(number):
        raise GrammarError(f"{number!r} in it is no number that JSON has")
    if is_exact:
        if abs(number) > MAX_INTEGER:
            raise GrammarError(
                f"the number {_short(number)} in it is too large: at most {MAX_INTEGER} "
                "(or its negative), from where on not every integer can be told from the next"
            )
        _check_digits(number)
    elif isinstance(number, int) and not -(1 << 63) < number < 1 << 63:
        raise GrammarError(f"the number {_short(number)} in it is too large: at most 63 bits")


def _check_multiple(number: int | float, multiple: int) -> None:
    if number <= 0:
        raise GrammarError("multipleOf in it must be greater than 0")
    if multiple > MAX_MULTIPLE:
        raise GrammarError(
            f"multipleOf {number!r} in it, with those before it, has too many remainders: "
            f"at most {MAX_MULTIPLE}"
        )


def _check_digits(number: int | float) -> None:
    """The compiler reads a number and writes it: it must come out as the same one."""
    significand, exponent = _digits(number)
    if significand > MAX_INTEGER or abs(exponent) > _MAX_EXPONENT:
        raise GrammarError(
            f"the number {number!r} in it has too many digits: at most 15, and 22 behind the point"
        )


def _digits(number: int | float) -> tuple[int, int]:
    """Its digits as an integer, and the power of ten that they are multiplied with."""
    _, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(exponent, int)  # it is finite
    return int("".join(map(str, digits))), exponent


def _short(number: int | float) -> str:
    """As much of it as anyone reads; Python refuses to write out thousands of digits."""
    return f"{Decimal(number):.4g}"
