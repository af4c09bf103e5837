"""Memory for states that goes back to the system when it is let go.

The allocator of the C library keeps what is freed between pieces that live long. States that came
and went there left holes, in which small objects settled: a server's memory grew by two thirds of
what its cache had taken, without end.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_FLOAT_BYTES = 4
_ALIGNMENT = 64  # a cache line, and what vector instructions want
# From here on a mapping asks for huge pages: 21 MB are copied to new memory in 3 ms then, and in 9
# when the system has to hand them out in 4 KB. It takes no more of them than fit into a mapping.
_HUGE_BYTES = 4 << 20


def zero_floats(shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Float32 tensors of zeros on the CPU, none of them without elements.

    They share one mapping of memory, which is there until the last of them is gone: a process may
    have 65,530. Memory is taken when it is written.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows, whose allocator is another one, too
        return [torch.zeros(tuple(shape)) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    *offsets, end = itertools.accumulate(map(_aligned, sizes), initial=0)
    mapping = mmap.mmap(-1, end, flags=mmap.MAP_PRIVATE)
    if end >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return [
        torch.frombuffer(mapping, dtype=torch.float32, count=size, offset=offset).view(*shape)
        for size, offset, shape in zip(sizes, offsets, shapes, strict=True)
    ]


def mapped_bytes(sizes: Sequence[int]) -> int:
    """What `zero_floats` takes for tensors of so many elements once all are written: whole pages,
    4 KB where a few bytes would do.
    """
    return -(-sum(map(_aligned, sizes)) // mmap.PAGESIZE) * mmap.PAGESIZE


def _aligned(size: int) -> int:
    """Bytes to the beginning of what follows so many floats."""
    return -(-size * _FLOAT_BYTES // _ALIGNMENT) * _ALIGNMENT
