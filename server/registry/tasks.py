"""Work beside the event loop, and several pieces of it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

_R = TypeVar("_R")

_NUM_DISK_THREADS = 4


class DiskThreads:
    """Threads for files, so that a slow disk holds up transfers and nothing else."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_NUM_DISK_THREADS, thread_name_prefix="registry-disk")

    async def run(self, work: Callable[..., _R], *arguments: object) -> _R:
        """What `work` returns. When cancelled it still waits: nothing goes on behind its back."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, lambda: work(*arguments))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({future})
            future.exception()  # has been seen: nobody is left to be told
            raise

    def close(self) -> None:
        self._executor.shutdown(wait=True)


async def run_all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs all at once; the first error ends the others, and is raised when they have ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await end_all(tasks)
    for task in done:
        await task


async def end_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancels what has not ended and waits until it has."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
