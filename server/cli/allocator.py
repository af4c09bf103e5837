"""How the C library hands out memory in a server's process."""

from __future__ import annotations

import ctypes
import os

_M_MMAP_THRESHOLD = -3  # of glibc's <malloc.h>
_THRESHOLD_BYTES = 128 << 10  # where glibc itself begins


def give_large_blocks_back() -> None:
    """Has freed blocks of 128 KB and more go back to the system at once, for ever.

    Left alone, glibc raises the threshold to the largest block that was ever freed. Logits and
    tensors of a pass then come and go in the heap, small objects that stay settle in the holes, and
    a chat of the 0.4B model grew by 2 MB a turn. The price is 65 page faults a pass. Does nothing
    where there is no glibc, or the user has set a threshold.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
