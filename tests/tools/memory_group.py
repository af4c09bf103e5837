"""A control group of this machine that limits memory, of version 2 or 1, for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_FOR_ALL_TO_LEAVE_S = 30.0


class MemoryGroup:
    """The group in `folder`; a process joins by writing its number to `processes_file`."""

    def __init__(self, folder: Path, limit_file: str, num_bytes: int) -> None:
        self.folder = folder
        self.processes_file = folder / "cgroup.procs"
        (folder / limit_file).write_text(str(num_bytes))


@contextmanager
def memory_group(name: str, num_bytes: int) -> Iterator[MemoryGroup]:
    """Raises OSError where this process may not make one."""
    is_v2 = (_GROUPS / "cgroup.controllers").exists()
    folder = (_GROUPS if is_v2 else _GROUPS / "memory") / name
    folder.mkdir()
    try:
        yield MemoryGroup(folder, "memory.max" if is_v2 else "memory.limit_in_bytes", num_bytes)
    finally:
        deadline = time.monotonic() + _FOR_ALL_TO_LEAVE_S
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        folder.rmdir()
