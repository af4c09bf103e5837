"""Runs native code that recurses, where the stack of an ordinary thread may be too small."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

# Addresses only: memory is taken as far as the stack is used. A usual thread has 8 MiB on Linux,
# half of one on macOS, an eighth on Alpine.
STACK_BYTES = 256 << 20

_guard = threading.Lock()
_Result = TypeVar("_Result")


def run_with_large_stack(work: Callable[[], _Result]) -> _Result:
    """`work()` in a thread of its own, waited for; raises what it raises."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # also what a panic of native code becomes
            future.set_exception(error)

    thread = threading.Thread(target=run, name="anser-large-stack")
    with _guard:  # the size is the process's: whoever starts a thread now gets it, too
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return future.result()
