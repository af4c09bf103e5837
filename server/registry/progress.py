"""Progress objects as Ollama streams them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from server.creating.jobs import Json
from server.registry.download import short_digest

# Unchanged progress is told again so often, so that clients see that the server is there.
_REPEAT_S = 1.0


async def follow(
    tasks: set[asyncio.Task[Any]], count: Callable[[], int], period_s: float
) -> AsyncGenerator[int]:
    """What `count` gives, when it has changed and once a second, until one of the tasks is done.

    No more often than every `period_s`, but for the last time.
    """
    before, told_at = -1, 0.0
    while True:
        is_done = any(task.done() for task in tasks)
        now, number = time.monotonic(), count()
        if number != before or now - told_at >= _REPEAT_S:
            before, told_at = number, now
            yield number
        if is_done:
            return
        await asyncio.wait(tasks, timeout=period_s, return_when=asyncio.FIRST_COMPLETED)


def status(text: str) -> Json:
    return {"status": text}


def transfer(verb: str, digest: str, total: int, completed: int) -> Json:
    """How much of a blob has come or gone; numbers that are zero are left out, as Go does."""
    numbers = {"total": total, "completed": completed}
    return {"status": f"{verb} {short_digest(digest)}", "digest": digest} | {
        name: number for name, number in numbers.items() if number
    }
