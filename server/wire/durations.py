"""Durations as Go reads them, and how long a model stays in memory after its last request."""

from __future__ import annotations

import re

from rwkv_core.errors import AnserError
from server.wire.go_text import go_quote

# Go's time.Duration is a signed 64-bit number of nanoseconds; its largest value means "for ever".
FOREVER_NS = 2**63 - 1

_SECOND_NS = 1_000_000_000
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu
    "ms": 1_000_000,
    "s": _SECOND_NS,
    "m": 60 * _SECOND_NS,
    "h": 3600 * _SECOND_NS,
}
_PART = re.compile(r"([0-9]*)(\.[0-9]*)?([^0-9.]*)")


class DurationError(AnserError):
    """Text that is no duration, in Go's words."""


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration such as "1h30m", "-1s" or "300ms". Raises DurationError."""
    invalid = DurationError(f"time: invalid duration {go_quote(text)}")
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    if not rest:
        raise invalid
    total = 0
    while rest:
        part = _PART.match(rest)
        assert part is not None  # every piece of the pattern is optional
        whole, fraction, unit = part[1], part[2] or "", part[3]
        if not whole and fraction in ("", "."):
            raise invalid
        if not unit:
            raise DurationError(f"time: missing unit in duration {go_quote(text)}")
        if unit not in _UNITS_NS:
            raise DurationError(f"time: unknown unit {go_quote(unit)} in duration {go_quote(text)}")
        digits = fraction[1:20]  # what is finer than a nanosecond counts for nothing
        if len(whole.lstrip("0")) > 19:
            raise invalid
        scale = _UNITS_NS[unit]
        total += int(whole or "0") * scale + int(digits or "0") * scale // 10 ** len(digits)
        if total > FOREVER_NS:
            raise invalid
        rest = rest[part.end() :]
    return sign * total


def keep_alive_ns(value: float | str) -> int:
    """How long to keep a model, in ns, from seconds or a Go duration; negative is for ever.

    Raises DurationError for text that is no duration.
    """
    nanoseconds = parse_duration(value) if isinstance(value, str) else value * _SECOND_NS
    return FOREVER_NS if nanoseconds < 0 else int(min(nanoseconds, FOREVER_NS))
