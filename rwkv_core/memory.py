"""How much memory this process may still take, and the error for a model that needs more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rwkv_core.errors import ModelTooLargeError

# Bits that a parameter takes in a file made by `anser create --quantize`, from the best to the
# smallest: all tensors of it counted, for the released sizes from 0.4B to 13.3B, rounded up.
BITS_PER_PARAMETER = {
    "q8_0": 8.8,
    "q6_k": 6.9,
    "q5_1": 6.4,
    "q5_k_m": 6.2,
    "q5_0": 5.9,
    "q4_k_m": 5.5,
    "q4_0": 4.9,
}

# What an estimated size must leave free: one step of the sizes in the message.
_MARGIN = 10**8


@dataclass(frozen=True)
class GroupLimit:
    """The limit of a control group, and what of it this process may still take, in bytes."""

    num_bytes: int
    available: int


def require_memory(
    path: str | os.PathLike[str],
    *,
    type_name: str,
    weight_bytes: int,
    other_bytes: int,
    num_parameters: int,
    available: int | None,
    group_limit: GroupLimit | None = None,
    stays_packed: bool = True,
) -> None:
    """Raises ModelTooLargeError if the model at `path` does not fit; call it before allocating.

    `weight_bytes` is what the `num_parameters` weights will take in memory, most of them as
    `type_name` ("F16", "Q8_0"); `other_bytes` is everything beside them at the worst moment, which
    does not depend on the type. `available` is what `available_bytes` says; None, unknown, lets
    everything pass. The error says how much is needed, how much there is, what `tightest_limit` set
    it, and the best quantization that would fit. `stays_packed` False means that quantized weights
    are expanded when they are loaded, so that none helps.
    """
    needed = weight_bytes + other_bytes
    if available is None or needed <= available:
        return
    free = f"{_size(available)} are free"
    remedy = "close other programs or use a smaller model"
    if group_limit is not None:
        free += f" of the {_size(group_limit.num_bytes)} that this container or service may take"
        remedy = (
            "raise that limit (docker run --memory, mem_limit, MemoryMax) or use a smaller model"
        )
    for name, bits in BITS_PER_PARAMETER.items():
        quantized = int(num_parameters * bits / 8) + other_bytes
        if stays_packed and quantized + _MARGIN <= available:
            remedy = (
                f"quantized to {name} it needs {_size(quantized, round_up=True)}: "
                f"anser create NAME --from FILE --quantize {name}"
            )
            break
    raise ModelTooLargeError(
        path,
        f"needs {_size(needed, round_up=True)} of memory in {type_name}, but only {free}; {remedy}",
        missing=needed - available,
    )


def available_bytes(root: Path = Path("/")) -> int | None:
    """What this process may still take without swapping or being killed for it; None if unknown.

    On Linux: what the system says is available, or less where a control group (a container, a
    service) has a limit; file cache counts as available. None on other systems. `root` holds the
    `proc` and `sys` to read.
    """
    in_system = _in_system(root)
    limit = tightest_limit(root)
    return in_system if limit is None else limit.available


def tightest_limit(root: Path = Path("/")) -> GroupLimit | None:
    """The control group that leaves this process the least, if it is less than the system does."""
    in_system = _in_system(root)
    limits = [found for each in _control_groups(root) if (found := _limit_of(each)) is not None]
    tightest = min(limits, key=lambda limit: limit.available, default=None)
    if in_system is None or tightest is None or tightest.available >= in_system:
        return None
    return tightest


def _in_system(root: Path) -> int | None:
    """What the system says is available, control groups aside; None if it does not."""
    available = _number_after("MemAvailable:", root / "proc/meminfo")
    return None if available is None else available * 1024


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of the groups that limit this process's memory, each with all above it."""
    mounts = list(_memory_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        controllers, _, group = line.partition(":")[2].partition(":")
        is_v2 = controllers == ""
        if not is_v2 and "memory" not in controllers.split(","):
            continue
        for mount_is_v2, mounted, folder in mounts:
            if mount_is_v2 != is_v2:
                continue
            # In a container the path may be the host's; what is mounted then is the group itself.
            inside = PurePosixPath(group)
            is_inside = inside.is_relative_to(mounted) and ".." not in inside.parts
            below = inside.relative_to(mounted) if is_inside else PurePosixPath()
            yield from (folder / part for part in (below, *below.parents))


def _memory_mounts(root: Path) -> Iterator[tuple[bool, PurePosixPath, Path]]:
    """Where control groups are mounted: whether of version 2, which group, and the folder."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = (*filesystem.split(" "), "", "")[:3]
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            mounted, folder = mount.split(" ")[3:5]
            yield kind == "cgroup2", PurePosixPath(mounted), root / folder.lstrip("/")


def _limit_of(folder: Path) -> GroupLimit | None:
    """A group's limit; what is left of it includes its file cache. None if it has no limit."""
    for limit_name, usage_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # version 1
    ):
        limit = _number_after("", folder / limit_name)
        usage = _number_after("", folder / usage_name)
        if limit is None or usage is None:  # "max", or no such file
            continue
        for kind in ("inactive_file", "active_file"):
            usage -= _number_after(f"{prefix}{kind} ", folder / "memory.stat") or 0
        return GroupLimit(limit, max(limit - max(usage, 0), 0))
    return None


def _number_after(key: str, path: Path) -> int | None:
    """The number after `key` on the line that begins with it; None if there is none."""
    for line in _lines(path):
        words = line.removeprefix(key).split() if line.startswith(key) else []
        if words:
            return int(words[0]) if words[0].isdecimal() else None
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _size(num_bytes: int, *, round_up: bool = False) -> str:
    """ "7.9 GB", "83 MB". What is needed is rounded up and what is free is not, so that one that
    does not fit the other looks larger, too."""
    step = 10**8 if num_bytes >= 10**9 else 10**6
    steps = -(-num_bytes // step) if round_up else num_bytes // step
    return f"{steps / 10:.1f} GB" if step == 10**8 else f"{steps} MB"
