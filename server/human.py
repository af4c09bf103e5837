"""Sizes, ages and durations in Ollama's words."""

from __future__ import annotations

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_FOREVER = 20 * 365 * _DAY


def human_bytes(count: int) -> str:
    """A size as `ollama list` shows it: 1.6 GB, 398 MB, 12 B."""
    for scale, unit in _UNITS:
        if count >= scale:
            value = count / scale
            if value >= 10 or value == int(value):
                return f"{int(value)} {unit}"
            return f"{value:.1f} {unit}"
    return f"{count} B"


def human_age(seconds: float) -> str:
    """How long ago something was, to one unit: "2 hours ago", "About a minute ago"."""
    return f"{_human_span(max(seconds, 0.0))} ago"


def human_until(seconds: float) -> str:
    """When something ends, in so many seconds: "4 minutes from now"."""
    if seconds < 0:
        return "Stopping..."
    if seconds > _FOREVER:
        return "Forever"
    return f"{_human_span(seconds)} from now"


def _human_span(seconds: float) -> str:
    hours = round(seconds / _HOUR)
    steps = (
        (seconds < 1, "Less than a second"),
        (seconds < 2, "1 second"),
        (seconds < _MINUTE, f"{int(seconds)} seconds"),
        (seconds < 2 * _MINUTE, "About a minute"),
        (seconds < _HOUR, f"{int(seconds / _MINUTE)} minutes"),
        (hours == 1, "About an hour"),
        (hours < 2 * 24, f"{hours} hours"),
        (hours < 14 * 24, f"{hours // 24} days"),
        (hours < 60 * 24, f"{hours // 24 // 7} weeks"),
        (hours < 730 * 24, f"{hours // 24 // 30} months"),
    )
    for fits, words in steps:
        if fits:
            return words
    return f"{int(seconds / _DAY / 365)} years"


def go_duration(nanoseconds: int) -> str:
    """A duration as Go prints it: 1h2m3.5s, 1.25s, 12.3ms, 0s."""
    if nanoseconds < 10**9:
        for scale, unit in ((10**6, "ms"), (10**3, "µs"), (1, "ns")):
            if nanoseconds >= scale:
                return f"{_decimal(nanoseconds, scale)}{unit}"
        return "0s"
    minutes, rest = divmod(nanoseconds, _MINUTE * 10**9)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{_decimal(rest, 10**9)}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(value: int, scale: int) -> str:
    """value / scale, exactly, without trailing zeros; `scale` is a power of ten."""
    whole, fraction = divmod(value, scale)
    digits = str(scale + fraction)[1:].rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
