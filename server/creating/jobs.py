"""Long work in a thread, told to the client while it goes on, ended when the client goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from rwkv_core.errors import AnserError

Json = dict[str, Any]

# (what is being done, bytes done, bytes of all; 0 of 0 where nothing is measured)
Report = Callable[[str, int, int], None]

# Ollama's command line draws a bar for objects with a digest; this one it sends for quantizing.
_NO_DIGEST = "0000000000000000000"
# A large model has a million rows to report; nobody sees more than some steps a second.
_PERIOD_S = 0.06


class JobCancelledError(AnserError):
    """Nobody waits for the work any more; raised by `Report`, inside the work."""


async def run_job(work: Callable[[Report], None]) -> AsyncGenerator[Json]:
    """Runs `work` in a thread and yields its statuses as Ollama's progress objects.

    Raises what the work raises. Closing the generator makes the work's next report raise
    JobCancelledError, and returns when the work has ended. Of several reports of one status in a
    short time, or while the client reads slowly, it gets the newest.
    """
    board = _Board(asyncio.get_running_loop())
    worker = asyncio.create_task(asyncio.to_thread(work, board.report))
    worker.add_done_callback(lambda _: board.news.set())
    try:
        while True:
            is_done = worker.done()  # asked first: what was reported before the end is read below
            for status in board.take():
                yield status
            if is_done:
                break
            await board.news.wait()
            board.news.clear()
            await asyncio.wait({worker}, timeout=_PERIOD_S)
        worker.result()
    finally:
        board.cancel()
        await asyncio.wait({worker})
        if not worker.cancelled():
            worker.exception()  # is known now: asyncio shall not complain about it


async def only_last(objects: AsyncGenerator[Json]) -> AsyncGenerator[Json]:
    """The answer to a request that does not want a stream: the last status."""
    last: Json = {}
    async with aclosing(objects):
        async for each in objects:
            last = each
    yield last


class _Board:
    """Written by the thread without ever blocking it, read by the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.news = asyncio.Event()
        self._loop = loop
        self._lock = threading.Lock()
        self._reports: dict[str, tuple[int, int]] = {}
        self._is_cancelled = False

    def report(self, status: str, num_done: int, num_total: int) -> None:
        with self._lock:
            if self._is_cancelled:
                raise JobCancelledError("request canceled")
            self._reports[status] = (num_done, num_total)
            is_first = len(self._reports) == 1
        if is_first:
            try:
                self._loop.call_soon_threadsafe(self.news.set)
            except RuntimeError:  # the loop is closed: the server is gone
                raise JobCancelledError("the server is shutting down") from None

    def take(self) -> list[Json]:
        with self._lock:
            reports, self._reports = self._reports, {}
        return [_progress(status, *counts) for status, counts in reports.items()]

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True


def _progress(status: str, num_done: int, num_total: int) -> Json:
    if not num_total:
        return {"status": status}
    return {
        "status": status,
        "digest": _NO_DIGEST,
        "total": num_total,
        "completed": num_done,
    }
