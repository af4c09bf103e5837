"""How the C library hands out memory in a server's process."""

from __future__ import annotations

import ctypes
import os

# Of glibc's <malloc.h>.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_THRESHOLD_BYTES = 128 << 10  # where glibc itself begins


def keep_heap_small() -> None:
    """Has freed memory used again, or given back; to be called before there are threads.

    Freed blocks of 128 KB and more go back to the system at once, for ever. Left alone, glibc
    raises the threshold to the largest block that was ever freed. Logits and tensors of a pass then
    come and go in the heap, small objects that stay settle in the holes, and a chat of the 0.4B
    model grew by 2 MB a turn. The price is 65 page faults a pass.

    All threads share one heap. Left alone, each gets its own, with holes that no other may fill:
    of a chat of 100 turns 4 MB stayed in them, and 1.8 MB in one. Few of our threads allocate at
    the same time, as they hold Python's lock.

    Does nothing where there is no glibc, or the user has set the same.
    """
    if "GLIBC_TUNABLES" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, 1)
