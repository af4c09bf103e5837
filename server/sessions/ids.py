"""What a session may be called, and where a request says it."""

from __future__ import annotations

import re
import uuid

from server.wire.errors import ApiError
from server.wire.go_text import go_quote

SESSION_HEADER = "X-Anser-Session"

# Safe in a path, in a file's name and in a log.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_SHOWN_CHARS = 40


def check_id(text: str) -> str:
    """The id itself. Raises ApiError (400) for what is none."""
    if not _ID.fullmatch(text):
        shown = text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
        raise ApiError(
            400,
            f"invalid session {go_quote(shown)}: use 1 to 128 letters, digits, dots, hyphens and "
            "underscores, a letter or digit first",
        )
    return text


def new_id() -> str:
    return uuid.uuid4().hex


def asked_session(field: str, header: str | None) -> str:
    """The id that a request names by field or header; "" if it names none.

    Raises ApiError (400) for an id that cannot be, and for two.
    """
    if field and header and field != header:
        raise ApiError(400, f"session and {SESSION_HEADER} name two different sessions; send one")
    named = field or header or ""
    return check_id(named) if named else ""
