"""How much states may take, when nobody says."""

from __future__ import annotations

import shutil
from pathlib import Path

from rwkv_core.memory import available_bytes

_MIN_MEMORY_BUDGET = 64 << 20
_MAX_MEMORY_BUDGET = 2 << 30
_MAX_DISK_BUDGET = 20 << 30

# One part in so many of what is free.
_PARTS = 10


def memory_budget(available: int | None = None) -> int:
    """Bytes of memory for the snapshots of all models: a tenth of what this process may still take,
    from 64 MiB to 2 GiB. `available` (default: as measured) is best looked at after the weights
    have been loaded; what snapshots take by then belongs to it.
    """
    available = available_bytes() if available is None else available
    if available is None:
        return _MIN_MEMORY_BUDGET
    return min(max(available // _PARTS, _MIN_MEMORY_BUDGET), _MAX_MEMORY_BUDGET)


def disk_budget(folder: Path) -> int:
    """Bytes of disk for the folder of states, which need not exist: a tenth of what is free on its
    disk or taken by it, at most 20 GiB.
    """
    taken = sum(_size(path) for path in folder.rglob("*"))
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return min((shutil.disk_usage(existing).free + taken) // _PARTS, _MAX_DISK_BUDGET)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone since it was listed
        return 0
