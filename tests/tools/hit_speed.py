"""What a hit of the state cache costs, for states of a given shape; no weights are needed.

    python -m tests.tools.hit_speed [FOLDER] [--layers 32] [--width 2560] [--tokens 4000]

A hit is the lookup and the copy into a new slot. From disk it is measured with the file in the
system's cache and without: before each of the latter the system is asked to forget it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rwkv_core.cache import DiskTier, SnapshotKind, StateCache, TokenArray
from rwkv_core.cache.disk_folder import FILES_NAME
from rwkv_core.config import ModelConfig
from rwkv_core.state import State
from tests.tools.random_checkpoint import TINY
from tests.tools.snapshots import KEY, equal, snapshot_of

PLENTY = 1 << 34
_FLUSH_S = 300.0
_NUM_OTHERS = 4  # snapshots of the same chat before it


@dataclass(frozen=True)
class Hit:
    """Milliseconds that it took, and that a processor was busy with it, by any thread."""

    wall: float
    cpu: float


def measure(
    config: ModelConfig, folder: Path, num_tokens: int, repetitions: int
) -> dict[str, list[Hit]]:
    """By where it is. Raises AssertionError when a hit is not the state that was put."""
    text: TokenArray = np.arange(num_tokens, dtype=np.int32) % config.vocab_size
    snapshot = snapshot_of(text.tolist(), config)
    with closing(DiskTier(folder, PLENTY, max_queued_bytes=PLENTY)) as disk:
        cache = StateCache(KEY, PLENTY, disk)
        step = num_tokens // (_NUM_OTHERS + 1)
        for count in range(step, num_tokens - 1, step):
            cache.put(text[:count], snapshot_of((count,), config), SnapshotKind.TURN)
        cache.put(text, snapshot, SnapshotKind.PROMPT_END)
        assert disk.flush(_FLUSH_S)
        longer = np.concatenate((text, np.array([1, 2, 3], np.int32)))

        def hit(cache: StateCache) -> Hit:
            start, cpu_start = time.perf_counter(), time.process_time()
            found = cache.lookup(longer)
            assert found is not None
            slot = State.zeros(config)
            slot.copy_(found.snapshot.state)
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
            assert found.num_tokens == num_tokens
            assert equal(found.snapshot, snapshot)
            assert disk.flush(_FLUSH_S)  # of the note that it was used
            return Hit(1000 * wall, 1000 * cpu)

        def from_disk(before: Callable[[], None]) -> Hit:
            # A new cache has nothing in memory.
            before()
            return hit(StateCache(KEY, PLENTY, disk))

        hit(cache)
        return {
            "memory": [hit(cache) for _ in range(repetitions)],
            "disk": [from_disk(lambda: None) for _ in range(repetitions)],
            "cold disk": [from_disk(lambda: forget_files(folder)) for _ in range(repetitions)],
        }


def forget_files(folder: Path) -> None:
    """Asks the system to drop the files from its cache, so that they are read from the disk."""
    for path in (folder / FILES_NAME).iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def shape(layers: int, width: int) -> ModelConfig:
    return replace(TINY, vocab_size=65536, n_layer=layers, n_embd=width, head_size=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("-r", "--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    config = shape(arguments.layers, arguments.width)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        hits = measure(config, Path(folder), arguments.tokens, arguments.repetitions)
    size = State.zeros(config).nbytes / 1e6
    print(f"state of {size:.1f} MB, {torch.get_num_threads()} threads; median (lowest), ms")
    for place, each in hits.items():
        wall, cpu = [hit.wall for hit in each], [hit.cpu for hit in each]
        print(f"{place:9} {_spread(wall)}, of a processor {_spread(cpu)}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):.2f})"


if __name__ == "__main__":
    main()
