"""Text as Go writes it: quoted strings, times, numbers. Clients and people compare these words."""

from __future__ import annotations

import time
from decimal import Decimal

_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}
_NANOSECONDS = 1_000_000_000


def go_quote(text: str, *, only_ascii: bool = False) -> str:
    """`text` as Go's %q prints it (%+q if `only_ascii`): double quotes, escapes for what cannot be
    seen.
    """
    return '"' + "".join(_escape(char, only_ascii) for char in text) + '"'


def _escape(char: str, only_ascii: bool) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable() and (char.isascii() or not only_ascii):
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def rfc3339(nanoseconds: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 in UTC, the fraction without its trailing zeros."""
    seconds, fraction = divmod(nanoseconds, _NANOSECONDS)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    digits = f"{fraction:09d}".rstrip("0")
    return f"{text}.{digits}Z" if digits else f"{text}Z"


def now_rfc3339() -> str:
    return rfc3339(time.time_ns())


def human_number(count: int) -> str:
    """A number of parameters as Ollama shows it: 2.9B, 5.80M, 12K."""
    if count >= 1_000_000_000:
        billions = count / 1e9
        return f"{billions:.0f}B" if billions.is_integer() else f"{billions:.1f}B"
    if count >= 1_000_000:
        millions = count / 1e6
        return f"{millions:.0f}M" if millions.is_integer() else f"{millions:.2f}M"
    if count >= 1_000:
        return f"{count / 1e3:.0f}K"
    return str(count)


def go_value(value: object) -> str:
    """A JSON value as Go's %#v prints it in `/api/show`'s parameters: text in quotes, 1.0 as 1."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return go_quote(value)
    if isinstance(value, int | float):
        return go_float(float(value))  # Go reads every JSON number as a float64
    return str(value)


def go_float(value: float) -> str:
    """Go's %v: the shortest digits that read back equal; an exponent below 1e-4 and from 1e6 on."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)  # JSON has no infinity
    magnitude = len(digits) + exponent - 1
    if -4 <= magnitude < 6 or value == 0:
        return f"{Decimal(repr(value)).normalize():f}"
    text = "".join(map(str, digits))
    mantissa = f"{text[0]}.{text[1:]}" if len(text) > 1 else text
    return f"{'-' if sign else ''}{mantissa}e{'-' if magnitude < 0 else '+'}{abs(magnitude):02d}"
