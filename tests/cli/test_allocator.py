"""A server's memory after large blocks have come and gone among small ones that stay."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rwkv_core.bench.machine import resident_bytes
from tests.tools.anser_command import PATIENCE_S, REPOSITORY

# Each round frees blocks of a pass, as large as they get, and keeps something small behind them.
_ROUNDS = """
import sys
from rwkv_core.bench.machine import resident_bytes
from server.cli.allocator import give_large_blocks_back

if "with" in sys.argv:
    give_large_blocks_back()
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
