"""Snapshots on disk: exact or not found, whatever has happened to the files."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rwkv_core.cache import DiskTier, ModelKey, Snapshot, SnapshotKind, as_tokens
from rwkv_core.cache import disk_tier as disk_tier_module
from rwkv_core.cache.disk_folder import FILES_NAME, INDEX_NAME, DiskFolder
from rwkv_core.cache.state_file import encode_state
from rwkv_core.cache.tokens import ANCHOR_TOKENS
from tests.tools.snapshots import KEY, is_of, snapshot_of
from tests.tools.waiting import wait_until

TURN, CHECKPOINT = SnapshotKind.TURN, SnapshotKind.CHECKPOINT

# Of a file of a few tokens, rounded up.
FILE_BYTES = encode_state(KEY, as_tokens([1]), snapshot_of([1]), TURN).num_bytes + 100
PLENTY = 1 << 30
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for power cuts, which no test can make, and slow where a disk is busy."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@contextmanager
def opened(
    folder: Path, budget: int = PLENTY, *, max_queued_bytes: int = PLENTY
) -> Iterator[DiskTier]:
    with closing(DiskTier(folder, budget, max_queued_bytes=max_queued_bytes)) as tier:
        yield tier


def put(
    tier: DiskTier, tokens: Sequence[int], kind: SnapshotKind = TURN, key: ModelKey = KEY
) -> Snapshot:
    snapshot = snapshot_of(tokens)
    tier.put(key, as_tokens(tokens), snapshot, kind)
    return snapshot


def found(tier: DiskTier, tokens: Sequence[int], key: ModelKey = KEY) -> int:
    """How many tokens are found, with their own snapshot."""
    hit = tier.lookup(key, as_tokens(tokens))
    if hit is None:
        return 0
    assert is_of(hit.snapshot, tokens[: hit.num_tokens])
    return hit.num_tokens


def write(folder: Path, *texts: Sequence[int], budget: int = PLENTY) -> None:
    with opened(folder, budget) as tier:
        for tokens in texts:
            put(tier, tokens)
            assert tier.flush(30)


def files(folder: Path) -> list[Path]:
    return sorted((folder / FILES_NAME).iterdir())


def the_file(folder: Path) -> Path:
    (path,) = files(folder)
    return path


def random_text(length: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, 300, length).tolist()
    return found


def test_a_snapshot_outlives_the_process(tmp_path: Path) -> None:
    tokens = random_text(1000)
    with opened(tmp_path) as tier:
        put(tier, tokens, SnapshotKind.PROMPT_END)
        assert tier.flush(30)
        assert found(tier, tokens) == 1000
    with opened(tmp_path) as tier:
        hit = tier.lookup(KEY, as_tokens([*tokens, 1, 2, 3]))
        assert hit is not None
        assert (hit.num_tokens, hit.kind) == (1000, SnapshotKind.PROMPT_END)
        assert is_of(hit.snapshot, tokens)
        assert found(tier, tokens[:-1]) == 0
        assert tier.statistics().num_snapshots == 1


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    with opened(tmp_path) as tier:
        for end in range(1, 20):
            put(tier, [1] * end)
    with opened(tmp_path) as tier:
        assert found(tier, [1] * 19) == 19


def test_the_longest_of_many_prefixes(tmp_path: Path) -> None:
    text = random_text(4 * ANCHOR_TOKENS)
    lengths = {1, 2, ANCHOR_TOKENS - 1, ANCHOR_TOKENS, ANCHOR_TOKENS + 1, 700, 2 * ANCHOR_TOKENS}
    others = [[*text[:length], 300 - text[length]] for length in (1, 255, 256, 600, 900)]
    write(tmp_path, *(text[:length] for length in lengths), *others)
    with opened(tmp_path) as tier:
        for length in (0, 1, 2, 3, 254, 255, 256, 257, 511, 512, 513, 699, 700, 701, len(text)):
            expected = max((each for each in lengths if each <= length), default=0)
            assert found(tier, text[:length]) == expected
        for other in others:
            assert found(tier, [*other, 5]) == len(other)
        tokens = as_tokens(text)
        hit = tier.lookup(KEY, tokens, longer_than=699)
        assert hit is not None
        assert hit.num_tokens == 700
        assert tier.lookup(KEY, tokens, longer_than=700) is None


def test_every_model_has_its_own(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3])
    with opened(tmp_path) as tier:
        for key in (replace(KEY, model="c" * 64), replace(KEY, numerics="c" * 64)):
            assert found(tier, [1, 2, 3], key) == 0
        put(tier, [1, 2], key=key)
        assert tier.flush(30)
        assert found(tier, [1, 2, 3], key) == 2
        assert found(tier, [1, 2, 3]) == 3


def test_the_same_again_is_not_written_again(tmp_path: Path) -> None:
    with opened(tmp_path) as tier:
        first = put(tier, [1, 2])
        tier.put(KEY, as_tokens([1, 2]), first, TURN)
        assert tier.flush(30)
        tier.put(KEY, as_tokens([1, 2]), first, TURN)
        put(tier, [1, 2])
        assert tier.flush(30)
        hit = tier.lookup(KEY, as_tokens([1, 2]))
        assert hit is not None
        tier.put(KEY, as_tokens([1, 2]), hit.snapshot, TURN)
        assert tier.flush(30)
        assert tier.statistics().num_written == 1
    assert len(files(tmp_path)) == 1


def test_a_kind_can_rise_but_not_fall(tmp_path: Path) -> None:
    with opened(tmp_path) as tier:
        for kind in (CHECKPOINT, SnapshotKind.PROMPT_END, TURN):
            put(tier, [1], kind)
            assert tier.flush(30)
        hit = tier.lookup(KEY, as_tokens([1]))
        assert hit is not None
        assert hit.kind is SnapshotKind.PROMPT_END
        assert tier.statistics().num_written == 1


def test_what_waits_to_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with opened(tmp_path) as tier:
        for end in (1, 2, 3):
            put(tier, [1] * end)
        assert gate.reached.wait(30)
        assert [found(tier, [1] * end) for end in (1, 2, 3, 4)] == [1, 2, 3, 3]
        assert found(tier, [2, 1]) == 0
        assert tier.lookup(KEY, as_tokens([1] * 3), longer_than=3) is None
        assert tier.lookup(replace(KEY, model="c" * 64), as_tokens([1] * 3)) is None
        gate.open.set()


def test_writing_waits_for_a_calm_moment_but_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CALM_S", "_LONGEST_WAIT_S"):
        monkeypatch.setattr(disk_tier_module, name, 3600.0)
    room = 5 * snapshot_of([1]).nbytes
    with opened(tmp_path, max_queued_bytes=room) as tier:
        put(tier, [1])
        put(tier, [2])
        assert tier.statistics().num_written == 0
        put(tier, [3])  # more than half of the room is taken
        wait_until(lambda: tier.statistics().num_written > 0)
        assert tier.flush(30)
        monkeypatch.setattr(disk_tier_module, "_LONGEST_WAIT_S", 0.0)
        put(tier, [4])
        wait_until(lambda: tier.statistics().num_written == 4)


def test_what_the_caller_does_with_its_tokens_later_changes_nothing(tmp_path: Path) -> None:
    tokens = as_tokens([1, 2, 3])
    with opened(tmp_path) as tier:
        tier.put(KEY, tokens, snapshot_of([1, 2, 3]), TURN)
        tokens[:] = 9
        assert tier.flush(30)
        assert found(tier, [1, 2, 3]) == 3


def test_nobody_else_may_read_what_was_said(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    write(folder, [1])
    for path in (folder, folder / FILES_NAME, the_file(folder)):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


# Budget


def test_the_budget_holds_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    with opened(tmp_path, 4 * FILE_BYTES) as tier:
        for chat in range(4):
            put(tier, [chat, chat])
        assert tier.flush(30)
        assert found(tier, [0, 0]) == 2
        assert tier.flush(30)  # the use is noted
        put(tier, [4, 4])
        assert tier.flush(30)
        assert [found(tier, [chat, chat]) for chat in range(5)] == [2, 0, 2, 2, 2]
        for chat in range(5, 30):
            put(tier, [chat, chat])
            assert tier.flush(30)
            assert sum(path.stat().st_size for path in files(tmp_path)) <= tier.budget
        assert tier.statistics().num_evicted == 26
        assert tier.statistics().num_snapshots == 4


def test_superseded_snapshots_go_before_newest_ones(tmp_path: Path) -> None:
    with opened(tmp_path, 4 * FILE_BYTES) as tier:
        put(tier, [8, 8])
        for end in range(1, 20):
            put(tier, [9] * end, CHECKPOINT if end % 3 else TURN)
        put(tier, [9] * 20)
        put(tier, [7] * 2)
        put(tier, [7], CHECKPOINT)  # as when it leaves the memory
        assert tier.flush(30)
        assert found(tier, [8, 8]) == 2
        assert found(tier, [9] * 20) == 20
        assert found(tier, [7, 7]) == 2


def test_a_smaller_budget_holds_from_the_start(tmp_path: Path) -> None:
    write(tmp_path, [1], [2], [3])
    with opened(tmp_path, 2 * FILE_BYTES) as tier:
        assert [found(tier, [chat]) for chat in (1, 2, 3)] == [0, 1, 1]
    assert len(files(tmp_path)) == 2


def test_a_state_larger_than_the_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path, FILE_BYTES // 2) as tier:
        put(tier, [1])
        put(tier, [2])
    assert files(tmp_path) == []
    assert len(caplog.records) == 1


# The queue


class Gate:
    """Stops the writing of files at `os.fsync`, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        self.reached.set()
        assert self.open.wait(30)


def test_a_full_queue_drops_the_oldest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    room = 4 * (snapshot_of([1]).nbytes + 20)
    with opened(tmp_path, max_queued_bytes=room) as tier:
        put(tier, [1], CHECKPOINT)
        assert gate.reached.wait(30)  # no longer waiting: it is being written
        kinds = [TURN, CHECKPOINT, CHECKPOINT, SnapshotKind.REPLY_END, TURN]
        for chat, kind in enumerate(kinds, 2):
            put(tier, [chat], kind)
            assert tier.statistics().num_queued_bytes <= room
        assert not tier.is_keeping_up
        assert not tier.flush(0)
        gate.open.set()
        assert tier.flush(30)
        assert tier.is_keeping_up
        assert [found(tier, [chat]) for chat in range(1, 7)] == [1, 1, 0, 0, 1, 1]
        assert tier.statistics().num_dropped == 2


def test_one_snapshot_may_wait_however_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with opened(tmp_path, max_queued_bytes=1) as tier:
        put(tier, [1])
        assert gate.reached.wait(30)
        for chat in range(2, 9):
            put(tier, [chat])
        gate.open.set()
        assert tier.flush(30)
        assert [found(tier, [chat]) for chat in range(1, 9)] == [1, 0, 0, 0, 0, 0, 0, 1]


def test_using_a_chat_uses_its_system_prompt(tmp_path: Path) -> None:
    with opened(tmp_path, 4 * FILE_BYTES) as tier:
        put(tier, [9], SnapshotKind.SYSTEM_PROMPT)
        put(tier, [9, 1])
        for chat in range(2, 20):
            put(tier, [chat])
            tier.touch(KEY, as_tokens([9, 1]))  # as when it is found in memory
            assert tier.flush(30)
        assert found(tier, [9, 2]) == 1
        assert found(tier, [9, 1]) == 2


# Damage


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_is_skipped_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    write(tmp_path, [1, 2])
    damaged = the_file(tmp_path)
    write(tmp_path, [1])
    place = random.Random(seed).randrange(damaged.stat().st_size)
    if seed == 0:
        os.truncate(damaged, place)
    else:
        flip(damaged, place)
    with opened(tmp_path) as tier:
        assert found(tier, [1, 2, 3]) == 1
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert damaged.name in caplog.text
        assert found(tier, [1, 2, 3]) == 1
        assert tier.statistics().num_snapshots == 1
        put(tier, [1, 2])  # and heals
        assert tier.flush(30)
        assert found(tier, [1, 2, 3]) == 2
    assert not damaged.exists()
    assert len(caplog.records) == 1


def test_a_file_in_the_place_of_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, [1])
    first = the_file(tmp_path)
    write(tmp_path, [2])
    (second,) = (path for path in files(tmp_path) if path != first)
    shutil.copy(second, first)
    with opened(tmp_path) as tier:
        assert found(tier, [1]) == 0
        assert found(tier, [2]) == 1
    assert len(caplog.records) == 1


def test_a_file_that_has_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, [1], [1, 2])
    with opened(tmp_path) as tier:
        newest = max(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
        newest.unlink()
        assert found(tier, [1, 2]) == 1
        assert tier.statistics().num_snapshots == 1
    assert not caplog.records


def test_a_file_that_cannot_be_opened_now_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [1])
    with opened(tmp_path) as tier:
        with monkeypatch.context() as patch:
            patch.setattr(DiskFolder, "read", raising(OSError(errno.EMFILE, "too many open files")))
            assert found(tier, [1]) == 0
            assert found(tier, [1]) == 0
        assert found(tier, [1]) == 1
    assert len(caplog.records) == 1


def test_an_index_that_cannot_be_read_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [1])
    with opened(tmp_path) as tier:
        with monkeypatch.context() as patch:
            patch.setattr(DiskFolder, "longest", raising(sqlite3.OperationalError("locked")))
            assert found(tier, [1]) == 0
            assert found(tier, [1]) == 0
        assert found(tier, [1]) == 1
    assert len(caplog.records) == 1


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_index_never_gives_a_wrong_state(tmp_path: Path, seed: int) -> None:
    texts = [random_text(20, chat) for chat in range(30)]
    write(tmp_path, *texts)
    index = tmp_path / INDEX_NAME
    rng = random.Random(seed)
    for _ in range(30):
        flip(index, rng.randrange(index.stat().st_size))
    with opened(tmp_path) as tier:
        for text in texts:
            found(tier, text)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, None])
def test_an_index_that_is_lost_is_made_again_from_the_files(
    tmp_path: Path, content: bytes | None
) -> None:
    texts = [random_text(300 + chat, chat) for chat in range(5)]
    write(tmp_path, *texts)
    index = tmp_path / INDEX_NAME
    if content is None:
        index.unlink()
    else:
        index.write_bytes(content)
    with opened(tmp_path) as tier:
        assert [found(tier, text) for text in texts] == [len(text) for text in texts]


def test_an_index_of_another_version_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [1, 2])
    index = tmp_path / INDEX_NAME
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with opened(tmp_path) as tier:
        put(tier, [3])
        assert found(tier, [1, 2]) == 0
    (record,) = caplog.records
    assert f"{index} was made by another version of Anser (format 99, not 1)" in record.message
    assert "set ANSER_STATES" in record.message
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("PRAGMA user_version = 1")
    with opened(tmp_path) as tier:
        assert found(tier, [1, 2]) == 2


def test_states_of_other_models_only(tmp_path: Path) -> None:
    write(tmp_path, [1, 2], [3])
    other = replace(KEY, numerics="c" * 64)
    with opened(tmp_path) as tier:
        assert (tier.num_foreign(KEY), tier.num_foreign(other)) == (0, 2)
        put(tier, [4], key=other)
        assert tier.flush(30)
        assert tier.num_foreign(other) == 0


# What killed processes leave


def test_leftovers_are_put_right_at_the_start(tmp_path: Path) -> None:
    write(tmp_path, [1])
    complete = the_file(tmp_path)
    folder = complete.parent
    with closing(sqlite3.connect(tmp_path / INDEX_NAME)) as connection, connection:
        connection.execute("UPDATE snapshots SET file = ?", (f"{'0' * 32}.safetensors",))
    half = complete.with_name(f"{'1' * 32}.safetensors")
    half.write_bytes(complete.read_bytes()[:1000])
    double = complete.with_name(f"{'2' * 32}.safetensors")
    shutil.copy(complete, double)
    old, new = folder / "tmp-old", folder / "tmp-new"
    for path in (old, new):
        path.write_bytes(b"half")
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    foreign = folder / "notes.txt"
    foreign.write_text("mine")
    with opened(tmp_path) as tier:
        assert found(tier, [1]) == 1
        assert tier.statistics().num_snapshots == 1
    # Another process may still be writing the new one; a file that is not ours is not touched.
    assert {new, foreign} < {*files(tmp_path)}
    assert len(files(tmp_path)) == 3


def run_tool(*arguments: str) -> None:
    """`python -m tests.tools.state_writers`, which checks what it does itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.state_writers", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_processes_killed_while_they_write(tmp_path: Path) -> None:
    run_tool("kill", str(tmp_path), "12")


def test_processes_that_share_a_folder(tmp_path: Path) -> None:
    run_tool("share", str(tmp_path), "3")


# Disks that cannot be written


def test_a_full_disk_turns_writing_off_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as tier:
        put(tier, [1])
        assert tier.flush(30)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
            for chat in range(2, 9):
                put(tier, [chat])
            assert tier.flush(30)
            assert not tier.is_keeping_up
            assert len(files(tmp_path)) == 1
            assert found(tier, [1]) == 1
            put(tier, [9])
        assert len(caplog.records) == 1
        assert "No space left" in caplog.text
        assert tier.statistics().num_dropped == 8
        monkeypatch.setattr(tier, "_paused_until", 0.0)  # the time has passed
        put(tier, [10])
        assert tier.flush(30)
        assert found(tier, [10]) == 1


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_a_folder_that_can_only_be_read(
    public_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = public_folder / "states"
    write(folder, [1, 2], [3, 4])
    damaged = files(folder)[0]
    flip(damaged, 2000)
    for path in (*files(folder), folder / INDEX_NAME):
        path.chmod(0o444)
    for path in (folder / FILES_NAME, folder):
        path.chmod(0o555)
    try:
        with as_nobody(), opened(folder) as tier:
            for _ in range(2):
                assert found(tier, [1, 2]) + found(tier, [3, 4]) == 2
            put(tier, [5])
            assert tier.flush(30)
            assert found(tier, [5]) == 0
            assert not tier.is_keeping_up
    finally:
        for path in (folder, folder / FILES_NAME):
            path.chmod(0o755)
    assert len(caplog.records) == 2  # one of the folder, one of the damaged file
    assert len(files(folder)) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with opened(tmp_path / "file" / "states") as tier:
        put(tier, [1])
        assert tier.flush(30)
        assert found(tier, [1]) == 0
        assert tier.statistics().num_snapshots == 0
    assert len(caplog.records) == 1


def test_a_failure_of_our_own_is_logged_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as tier:
        with monkeypatch.context() as patch:
            patch.setattr(DiskFolder, "add", raising(ZeroDivisionError()))
            put(tier, [1])
            assert tier.flush(30)
        put(tier, [2])
        assert tier.flush(30)
        assert found(tier, [2]) == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_an_index_that_another_process_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk_tier_module, "_WRITE_TIMEOUT_S", 0.01)
    write(tmp_path, [1])
    with (
        opened(tmp_path) as tier,
        closing(sqlite3.connect(tmp_path / INDEX_NAME, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        assert found(tier, [1]) == 1  # readers do not wait for writers
        put(tier, [2])
        assert tier.flush(30)
        other.execute("COMMIT")
        assert found(tier, [2]) == 0
    assert len(caplog.records) == 1


def test_a_closed_tier(tmp_path: Path) -> None:
    with opened(tmp_path) as tier:
        put(tier, [1])
    put(tier, [2])
    tier.touch(KEY, as_tokens([1]))
    assert found(tier, [1]) == 0
    assert tier.statistics().num_snapshots == 0
    tier.close()
    assert len(files(tmp_path)) == 1


def test_threads(tmp_path: Path) -> None:
    texts = [random_text(length, chat) for chat in range(4) for length in (5, 300)]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(40):
                text = rng.choice(texts)
                if rng.random() < 0.5:
                    put(tier, text[: rng.randrange(1, len(text) + 1)])
                else:
                    found(tier, text)
        except BaseException as error:
            errors.append(error)

    with opened(tmp_path, 20 * FILE_BYTES, max_queued_bytes=5 * FILE_BYTES) as tier:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tier.flush(30)
        assert not errors
        assert sum(path.stat().st_size for path in files(tmp_path)) <= tier.budget
