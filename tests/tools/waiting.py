"""Waiting for what another thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

# Generous: the machine may be busy with other things.
TIMEOUT_S = 60.0


def wait_until(is_so: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Waits for what another thread brings about, as long as it takes there."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.005)
