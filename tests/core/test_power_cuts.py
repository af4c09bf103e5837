"""States and sessions after power cuts, made from a record of what a process did to its files."""

from __future__ import annotations

import logging
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from rwkv_core.cache.disk_folder import INDEX_NAME
from rwkv_core.cache.disk_index import DiskIndex
from tests.tools import power_cuts
from tests.tools.power_cuts import Loss, Record

# Of the cuts, so many; `python -m tests.tools.power_cuts FOLDER` tries all of them.
NUM_CUTS = 30


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = power_cuts.build_recorder(tmp_path_factory.mktemp("recorder"))
    if built is None:
        pytest.skip("no C compiler, or no LD_PRELOAD")
    return built


@pytest.fixture(scope="module")
def made(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    return power_cuts.record(library, tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was recorded; where the cuts are looked at it is only slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_everything_is_recorded(made: Record, tmp_path: Path) -> None:
    """Without any loss the folder is as the process has left it."""
    files = power_cuts.after_a_cut(made, len(made.operations), Loss.NOTHING, random.Random(0))
    real = {str(path): path.read_bytes() for path in made.root.rglob("*") if path.is_file()}
    assert {path: files[path] for path in files if not path.endswith("-shm")} == real
    kinds = [each.kind for each in made.operations]
    num_states = power_cuts.NUM_LIVES * power_cuts.NUM_TEXTS
    assert kinds.count("R") == num_states  # each gets its name once it is complete
    assert kinds.count("S") > num_states
    assert kinds.count("U") > num_states // 2  # evicted, deleted, SQLite's own
    assert len(made.marks) == num_states + power_cuts.NUM_LIVES * (2 + power_cuts.NUM_TURNS)


def test_a_state_is_on_disk_before_it_has_its_name(made: Record) -> None:
    pending: set[int] = set()
    by_name: dict[str, int] = {}
    for each in made.operations:
        if each.kind == "C":
            by_name[each.data.decode()] = each.inode
        elif each.kind == "W":
            pending.add(each.inode)
        elif each.kind == "S":
            pending.discard(each.inode)
        elif each.kind == "R":
            assert by_name[each.data.decode().partition("\0")[0]] not in pending


@pytest.mark.parametrize("loss", Loss)
def test_after_a_cut_all_is_right_or_not_there(made: Record, loss: Loss, tmp_path: Path) -> None:
    rng = random.Random(loss.value)
    for position in rng.sample(range(len(made.operations) + 1), NUM_CUTS):
        folder = tmp_path / str(position)
        files = power_cuts.after_a_cut(made, position, loss, rng)
        power_cuts.write_folder(made, files, folder)
        power_cuts.require_states(made, position, folder)
        power_cuts.require_sessions(made, position, folder)


def test_states_that_were_not_synchronized_are_skipped_with_a_warning(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a disk that says it has written what it has not."""
    made = power_cuts.record(library, tmp_path, syncs_states=False)
    written = [position for position, mark in made.marks if mark.startswith("written")]
    rng = random.Random(0)
    for number, position in enumerate(rng.sample(written, 10)):
        folder = tmp_path / str(number)
        files = power_cuts.after_a_cut(made, position, Loss.DATA, rng)
        power_cuts.write_folder(made, files, folder)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            # None but those that were written after the cut.
            power_cuts.require_states(made, position, folder, is_kept=False)
        said = [record.getMessage() for record in caplog.records]
        assert any("skipping" in each or "deleting" in each for each in said)
        assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_how_much_sqlite_synchronizes(tmp_path: Path) -> None:
    """What the rest relies on: a commit that is cut off leaves the database as it was before it."""
    with closing(DiskIndex(tmp_path / INDEX_NAME, 1.0)) as index:
        execute = index._connection.execute
        assert execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert execute("PRAGMA synchronous").fetchone() == (1,)
