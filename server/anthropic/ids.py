"""Names for what goes out."""

from __future__ import annotations

import secrets

_NUM_BYTES = 12  # as many as Ollama's


def new_id(kind: str) -> str:
    """`msg_…` and the like."""
    return f"{kind}_{secrets.token_hex(_NUM_BYTES)}"
