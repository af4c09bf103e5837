"""A server's memory after large blocks have come and gone among small ones that stay."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from rwkv_core.bench.machine import resident_bytes
from tests.tools.anser_command import PATIENCE_S, REPOSITORY

# Each round frees blocks of a pass, as large as they get, and keeps something small behind them.
_ROUNDS = """
import sys
from rwkv_core.bench.machine import resident_bytes
from server.cli.allocator import keep_heap_small

if "with" in sys.argv:
    keep_heap_small()
import torch

kept = []
def one_round(size):
    large = [torch.ones(size + 1000 * number) for number in range(8)]
    kept.append(bytes(2000))
    del large[::2]
    kept.append(bytes(50_000))
one_round(1 << 18)
before = resident_bytes()
for number in range(100):
    one_round((1 << 16) + 997 * number)
print(resident_bytes() - before)
"""


@pytest.mark.skipif(resident_bytes() is None, reason="the system does not tell")
def test_memory_stays_flat() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ROUNDS, "with"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=REPOSITORY,
        check=True,
    )
    kept = 100 * 52_000
    assert int(done.stdout) < kept + (4 << 20)


# Threads that are all there at the same time; how many heaps the C library has for them.
_THREADS = """
import ctypes
import sys
import threading
from server.cli.allocator import keep_heap_small

if "with" in sys.argv:
    keep_heap_small()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
together = threading.Barrier(6)
def work():
    together.wait()
    assert libc.malloc(ctypes.c_size_t(5000))
    together.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(out))
libc.fflush(ctypes.c_void_p(out))
"""


def num_heaps(*words: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _THREADS, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=REPOSITORY,
        check=True,
    )
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_all_threads_share_a_heap() -> None:
    assert num_heaps() > 1
    assert num_heaps("with") == 1
