"""Processes that write states into one folder, killed or together, and a check of what they left.

    python -m tests.tools.state_writers kill FOLDER ROUNDS
    python -m tests.tools.state_writers share FOLDER PROCESSES

The writers are forks, so that PyTorch is imported once. Ends with a traceback if a state is not
what it should be.
"""

from __future__ import annotations

import logging
import os
import random
import select
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch

from rwkv_core.cache import DiskTier, SnapshotKind, as_tokens
from rwkv_core.cache.disk_folder import FILES_NAME
from rwkv_core.cache.disk_index import DiskIndex
from tests.tools.snapshots import KEY, is_of, snapshot_of

PLENTY = 1 << 30
# More than a file of a few tokens takes.
FILE_BYTES = snapshot_of((1,)).nbytes + 2000

FLUSH_S = 60.0


def kill_writers(folder: Path, rounds: int) -> None:
    """Each writer says which snapshots are safe, and is killed: at some moment after that, or by
    itself in the middle of a step.
    """
    rng = random.Random(0)
    safe: list[tuple[int, ...]] = []
    for number in range(rounds):
        first_text = 999 * number
        step = [None, "written", "named", "in the index"][number % 4]
        reader, writer = os.pipe()
        child = fork(partial(write_for_ever, folder, PLENTY, first_text, writer, step))
        os.close(writer)
        reports = b""
        if step is None:
            reports += os.read(reader, 1 << 16)
            select.select([reader], [], [], rng.random() * 0.03)
            os.kill(child, signal.SIGKILL)
        await_death(child)
        while more := os.read(reader, 1 << 16):
            reports += more
        os.close(reader)
        safe += [text_of(int(line)) for line in reports.split()]
        with closing(DiskTier(folder, PLENTY)) as tier:
            is_last = number == rounds - 1
            for text in safe if is_last else rng.sample(safe, min(20, len(safe))):
                require(tier, text, is_there=True)
            for index in range(first_text, first_text + 20):
                require(tier, text_of(index), is_there=False)
            check_index(folder, tier)
        # A writer has one temporary file at a time.
        assert len([*(folder / FILES_NAME).glob("tmp-*")]) <= number + 1
    assert len(safe) >= 3 * rounds


def kill_evictors(folder: Path, rounds: int) -> None:
    """Each dies when a file has gone to make room, and its row has not."""
    budget = 5 * FILE_BYTES
    for number in range(rounds):
        out = os.open(os.devnull, os.O_WRONLY)
        await_death(fork(partial(write_for_ever, folder, budget, 999 * number, out, "gone")))
        os.close(out)
        with closing(DiskTier(folder, budget)) as tier:
            for index in range(999 * number, 999 * number + 20):
                require(tier, text_of(index), is_there=False)
            assert 0 < tier.statistics().num_bytes <= budget
            check_index(folder, tier)


def share_folder(folder: Path, num_processes: int) -> None:
    """All write, look up and evict at once; the folder has room for a few."""
    budget = 12 * FILE_BYTES

    def work(seed: int) -> None:
        rng = random.Random(seed)
        with closing(DiskTier(folder, budget)) as tier:
            for _ in range(50):
                text = text_of(rng.randrange(20))
                if rng.random() < 0.5:
                    tier.put(KEY, as_tokens(text), snapshot_of(text), SnapshotKind.TURN)
                    assert tier.flush(FLUSH_S)
                else:
                    require(tier, text, is_there=False)
            assert tier.statistics().num_dropped == 0

    children = [fork(partial(work, seed)) for seed in range(num_processes)]
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0
    with closing(DiskTier(folder, budget)) as tier:
        assert 0 < tier.statistics().num_bytes <= budget
        check_index(folder, tier)


def write_for_ever(folder: Path, budget: int, first_text: int, out: int, step: str | None) -> None:
    """Writes texts from that on, and their numbers to `out` when they are safe.

    Some time later dies right before or after `step`, if there is one.
    """
    tier = DiskTier(folder, budget)
    index = first_text
    while True:
        if index == first_text + 9 and step is not None:
            die_at(step)
        text = text_of(index)
        tier.put(KEY, as_tokens(text), snapshot_of(text), SnapshotKind.TURN)
        if index % 3 == 2:
            assert tier.flush(FLUSH_S)
            os.write(out, b"".join(b"%d\n" % each for each in range(index - 2, index + 1)))
        index += 1


def die_at(step: str) -> None:
    rename = Path.rename

    def rename_and_die(path: Path, target: Path) -> None:
        rename(path, target)
        die()

    patches: dict[str, Any] = {
        "written": mock.patch.object(os, "fsync", die),  # the temporary file
        "named": mock.patch.object(Path, "rename", die),  # not yet
        "in the index": mock.patch.object(Path, "rename", rename_and_die),  # not yet
        "gone": mock.patch.object(DiskIndex, "delete", die),
    }
    patches[step].start()


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def await_death(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def text_of(index: int) -> tuple[int, ...]:
    return (1, 2, 3, index, *range(index % 7))


def require(tier: DiskTier, text: tuple[int, ...], *, is_there: bool) -> None:
    """The snapshot of all of the text, or none if it need not be there."""
    found = tier.lookup(KEY, as_tokens(text))
    assert found is not None or not is_there, f"{text} was written, but is not found"
    if found is not None:
        assert is_of(found.snapshot, text[: found.num_tokens])
        assert found.num_tokens == len(text)


def check_index(folder: Path, tier: DiskTier) -> None:
    """The index has the files that there are."""
    files = [*(folder / FILES_NAME).glob("*.safetensors")]
    statistics = tier.statistics()
    assert statistics.num_snapshots == len(files)
    assert statistics.num_bytes == sum(path.stat().st_size for path in files)


def fork(work: Callable[[], None]) -> int:
    """A child that does the work and exits, with 1 if it failed."""
    child = os.fork()
    return child or _run(work)


def _run(work: Callable[[], None]) -> NoReturn:
    try:
        work()
    except BaseException:
        logging.exception("a writer failed")
        os._exit(1)
    os._exit(0)


class _Warnings(logging.Handler):
    """No process that is killed, or has company, gives a reason to warn."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage())


def main() -> None:
    torch.set_num_threads(1)
    # It is for power cuts, which nobody can make here, and slow where a disk is busy.
    os.fsync = lambda _: None  # type: ignore[assignment]
    logging.getLogger("rwkv_core").addHandler(_Warnings(logging.WARNING))
    command, folder, count = sys.argv[1:]
    if command == "kill":
        kill_writers(Path(folder) / "writers", int(count))
        kill_evictors(Path(folder) / "evictors", int(count) // 2)
    else:
        share_folder(Path(folder), int(count))


if __name__ == "__main__":
    main()
