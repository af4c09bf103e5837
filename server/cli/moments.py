"""Moments in a server's answers."""

from __future__ import annotations

from datetime import datetime, timezone


def seconds_of(text: str) -> float:
    """Seconds since 1970 of RFC 3339, whatever the number of digits in its fraction; 0 if it is
    none.
    """
    moment, _, zone = text.partition(".")
    if zone:
        zone = zone.lstrip("0123456789")
    try:
        parsed = datetime.fromisoformat(f"{moment}{zone}".replace("Z", "+00:00"))
    except ValueError:
        return 0.0
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
