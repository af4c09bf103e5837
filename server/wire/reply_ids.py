"""Names for the replies of other APIs, and for the parts of them."""

from __future__ import annotations

import secrets

_NUM_BYTES = 12


def new_id(kind: str, separator: str = "_") -> str:
    """`chatcmpl-…`, `msg_…` and the like, which nothing else is called."""
    return f"{kind}{separator}{secrets.token_hex(_NUM_BYTES)}"
