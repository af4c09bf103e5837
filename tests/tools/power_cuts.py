"""What is left of files when the power goes, and whether the states on disk can be used then.

    python -m tests.tools.power_cuts FOLDER [EVERY]

A process writes, evicts and deletes states, and writes sessions, while `file_recorder.c` notes
every operation on its files, SQLite's too. From that record folders are made as they may be after a
power cut behind any operation (every one, or one in EVERY): what was not synchronized is there, or
is not, or in part.
On each of them both are opened. Ends with a traceback if a state is not what it should be, or a
session that was answered is not there.

What a disk may do is modelled as by ALICE (Pillai et al., OSDI 2014): data reaches it when its file
is synchronized, or in any order before; names when their file or folder is, or before, in their own
order or in any.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from rwkv_core.cache import DiskTier, SnapshotKind, as_tokens
from server.sessions.store import Session, SessionStore
from tests.tools.snapshots import KEY, is_of, snapshot_of

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
NUM_LIVES = 3
NUM_TEXTS = 10
NUM_TURNS = 2
# Room for all but a few of them.
BUDGET = 7 * (snapshot_of((1,)).nbytes + 2000)

_CHILD_CODE = """\
import sys
from tests.tools.power_cuts import write_states
write_states(*sys.argv[1:])
"""

_SECTOR_BYTES = 512


class Loss(Enum):
    """What a power cut takes."""

    NOTHING = "nothing"  # as when the process is killed
    DATA = "data"  # all that was not synchronized; names stay
    LATEST = "latest"  # some of that, and the latest names
    SCATTERED = "scattered"  # some of that, and some names


@dataclass(frozen=True)
class Operation:
    kind: str  # as in file_recorder.c
    inode: int
    number: int
    data: bytes


@dataclass
class Record:
    """Operations on the files below `root`, and how many there were before each mark."""

    root: Path
    operations: list[Operation]
    marks: list[tuple[int, str]]

    def said(self, num_operations: int) -> list[str]:
        """The marks up to there."""
        return [mark for position, mark in self.marks if position <= num_operations]


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)


@dataclass(frozen=True)
class _Naming:
    """A file gets a name, loses one (`to` is empty), or another one."""

    file: _File
    name: str
    to: str

    @property
    def folder(self) -> str:
        return os.path.dirname(self.name or self.to)


def build_recorder(folder: Path) -> Path | None:
    """The library that records; None where there is no C compiler, or no LD_PRELOAD."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "file_recorder.so"
    source = Path(__file__).with_name("file_recorder.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True, timeout=PATIENCE_S)
    return library


def record(library: Path, work: Path, *, syncs_states: bool = True) -> Record:
    """Has `write_states` run in a process that is recorded, in a folder in `work`."""
    root, log = work / "states", work / "log"
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "ANSER_RECORD_ROOT": str(root),
        "ANSER_RECORD_LOG": str(log),
    }
    subprocess.run(
        [sys.executable, "-c", _CHILD_CODE, str(root), str(int(syncs_states))],
        env=environment, cwd=ROOT, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    return _read(root, log.read_bytes())


def write_states(folder: str, syncs_states: str) -> None:
    """What is recorded: states of more texts than there is room for, and sessions of two turns, in
    three lives of a server.
    """
    root = Path(folder)
    if not int(syncs_states):
        os.fsync = lambda _: None  # type: ignore[assignment]
    for life in range(NUM_LIVES):
        with closing(DiskTier(root, BUDGET)) as tier, closing(SessionStore(root)) as sessions:
            for index in range(NUM_TEXTS):
                text = text_of(life, index)
                tier.put(KEY, as_tokens(text), snapshot_of(text), SnapshotKind.TURN)
                assert tier.flush(PATIENCE_S)
                _mark(root, f"written {life} {index}")
            last = f"{life} {NUM_TEXTS - 1}"
            _mark(root, f"deleting {last}")
            assert tier.forget(as_tokens(text_of(life, NUM_TEXTS - 1)), PATIENCE_S)
            _mark(root, f"deleted {last}")
            for turn in range(NUM_TURNS):
                _write_turn(sessions, life, turn)
                _mark(root, f"answered {life} {turn}")


def _write_turn(sessions: SessionStore, life: int, turn: int) -> None:
    earlier = sessions.get(f"session-{life}")
    session = earlier or Session(f"session-{life}", "model", "weights")
    sessions.save(session, [_body(life, turn)], replacing=earlier)


def _body(life: int, turn: int) -> str:
    return f"what was said in turn {turn} of session {life}, at length: " + 200 * "x"


def text_of(life: int, index: int) -> tuple[int, ...]:
    return (1 + life, 2, *range(3, 3 + index % 3), 40 + index)


def after_a_cut(
    made: Record, num_operations: int, loss: Loss, rng: random.Random
) -> dict[str, bytes]:
    """The files that there are when the power goes after so many operations, by their paths."""
    files: dict[int, _File] = {}
    durable: list[_Naming] = []
    pending: list[_Naming] = []
    names: dict[str, _File] = {}
    for each in made.operations[:num_operations]:
        if each.kind == "C":
            file = files[each.inode] = _File()  # a number may have been another file's
            pending.append(_Naming(file, "", each.data.decode()))
            names[each.data.decode()] = file
        elif each.kind in "WT":
            files[each.inode].pending.append(each)
        elif each.kind == "S":
            file = files[each.inode]
            _apply(file.durable, file.pending)
            file.pending.clear()
            durable += [naming for naming in pending if naming.file is file]
            pending = [naming for naming in pending if naming.file is not file]
        elif each.kind == "D":
            folder = each.data.decode()
            durable += [naming for naming in pending if naming.folder == folder]
            pending = [naming for naming in pending if naming.folder != folder]
        else:
            old, _, new = each.data.decode().partition("\0")
            file = names.pop(old)
            pending.append(_Naming(file, old, new))
            if new:
                names[new] = file
    named = _named(durable, pending, loss, rng)
    return {path: _content(file, loss, rng) for path, file in named.items()}


def write_folder(made: Record, files: dict[str, bytes], folder: Path) -> None:
    """Lays the files of a cut out in another folder. The memory that SQLite shares is not kept."""
    for path, content in files.items():
        if path.endswith("-shm"):
            continue
        target = folder / Path(path).relative_to(made.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def require_states(
    made: Record, num_operations: int, folder: Path, *, is_kept: bool = True
) -> None:
    """The tier opens, gives every state right or not at all, and takes new ones. The state that was
    written last is there, and what was deleted is not.
    """
    with closing(DiskTier(folder, BUDGET)) as tier:
        found = set()
        for life in range(NUM_LIVES):
            for index in range(NUM_TEXTS):
                text = text_of(life, index)
                hit = tier.lookup(KEY, as_tokens(text))
                if hit is not None:
                    assert hit.num_tokens == len(text), text
                    assert is_of(hit.snapshot, text), text
                    found.add(f"{life} {index}")
        said = [each for each in made.said(num_operations) if not each.startswith("answered")]
        if said and is_kept:
            what, _, which = said[-1].partition(" ")
            assert what == "deleting" or (which in found) == (what == "written"), said[-1]
        text = (9, 9, 9)
        tier.put(KEY, as_tokens(text), snapshot_of(text), SnapshotKind.TURN)
        assert tier.flush(PATIENCE_S)
        hit = tier.lookup(KEY, as_tokens(text))
        assert hit is not None
        assert is_of(hit.snapshot, text)
        statistics = tier.statistics()
        assert statistics.num_dropped == 0
        stored = [*folder.glob("snapshots/*.safetensors")]
        assert statistics.num_snapshots == len(stored)
        assert statistics.num_bytes == sum(path.stat().st_size for path in stored) <= BUDGET


def require_sessions(made: Record, num_operations: int, folder: Path) -> None:
    """Turns whose answer went out are there, and no other than were begun."""
    answered = [each.split() for each in made.said(num_operations) if each.startswith("answered")]
    with closing(SessionStore(folder)) as sessions:
        for life in range(NUM_LIVES):
            found = sessions.read(f"session-{life}")
            bodies = [each.body for each in found[1]] if found else []
            least = sum(int(each[1]) == life for each in answered)
            assert least <= len(bodies) <= least + 1, (life, answered)
            assert bodies == [_body(life, turn) for turn in range(len(bodies))]


def cuts(made: Record, every: int = 1) -> Iterator[tuple[int, Loss]]:
    """Each is behind so many operations."""
    for position in range(0, len(made.operations) + 1, every):
        for loss in Loss:
            yield position, loss


def _mark(root: Path, text: str) -> None:
    (root / f"mark-{text}").unlink(missing_ok=True)


def _read(root: Path, log: bytes) -> Record:
    made = Record(root, [], [])
    place = 0
    while place < len(log):
        end = log.index(b"\n", place)
        kind, inode, number, length = log[place:end].split()
        place = end + 1 + int(length)
        data = log[end + 1 : place]
        if kind == b"K":
            made.marks.append((len(made.operations), data.decode()))
        else:
            made.operations.append(Operation(kind.decode(), int(inode), int(number), data))
    return made


def _named(
    durable: Sequence[_Naming], pending: Sequence[_Naming], loss: Loss, rng: random.Random
) -> dict[str, _File]:
    if loss is Loss.LATEST:
        pending = pending[: rng.randrange(len(pending) + 1)]
    elif loss is Loss.SCATTERED:
        pending = [each for each in pending if rng.random() < 0.5]
    names: dict[str, _File] = {}
    for each in (*durable, *pending):
        if not each.name or names.get(each.name) is each.file:
            names.pop(each.name, None)
            if each.to:
                names[each.to] = each.file
    return names


def _content(file: _File, loss: Loss, rng: random.Random) -> bytes:
    pending = file.pending
    if loss is Loss.DATA:
        pending = []
    elif loss is not Loss.NOTHING:
        pending = [_torn(each, rng) for each in pending if rng.random() < 0.5]
    content = bytearray(file.durable)
    _apply(content, pending)
    return bytes(content)


def _torn(operation: Operation, rng: random.Random) -> Operation:
    """A write of which only the first sectors may have arrived."""
    if operation.kind != "W" or rng.random() < 0.5:
        return operation
    count = rng.randrange(len(operation.data) // _SECTOR_BYTES + 1) * _SECTOR_BYTES
    return Operation("W", operation.inode, operation.number, operation.data[:count])


def _apply(content: bytearray, operations: Sequence[Operation]) -> None:
    for each in operations:
        if each.kind == "T":
            del content[each.number :]
            content.extend(bytes(each.number - len(content)))
        elif each.data:
            content.extend(bytes(max(each.number - len(content), 0)))
            content[each.number : each.number + len(each.data)] = each.data


def main() -> None:
    work = Path(sys.argv[1])
    every = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    work.mkdir(parents=True, exist_ok=True)
    library = build_recorder(work)
    assert library is not None, "there is no C compiler"
    made = record(library, work)
    os.fsync = lambda _: None  # type: ignore[assignment]
    num_cuts = 0
    for position, loss in cuts(made, every):
        folder = work / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(made, after_a_cut(made, position, loss, random.Random(position)), folder)
        require_states(made, position, folder)
        require_sessions(made, position, folder)
        num_cuts += 1
    print(f"{len(made.operations)} operations, {num_cuts} power cuts: all is as it should be")


if __name__ == "__main__":
    main()
