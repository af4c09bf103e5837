"""Names for what goes out."""

from __future__ import annotations

import secrets

_NUM_BYTES = 12


def new_id(kind: str, separator: str = "_") -> str:
    """`chatcmpl-…`, `resp_…` and the like."""
    return f"{kind}{separator}{secrets.token_hex(_NUM_BYTES)}"
