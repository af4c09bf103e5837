"""Progress objects as Ollama streams them."""

from __future__ import annotations

from typing import Any

from server.registry.download import short_digest

Json = dict[str, Any]


def status(text: str) -> Json:
    return {"status": text}


def transfer(verb: str, digest: str, total: int, completed: int) -> Json:
    """How much of a blob has come or gone; numbers that are zero are left out, as Go does."""
    numbers = {"total": total, "completed": completed}
    return {"status": f"{verb} {short_digest(digest)}", "digest": digest} | {
        name: number for name, number in numbers.items() if number
    }
