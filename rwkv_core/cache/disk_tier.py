"""Snapshots on disk: found by prefix, written by a thread of their own.

Nothing is kept in memory for a snapshot that is on disk.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import numpy as np

from rwkv_core.cache.disk_folder import INDEX_NAME, DiskFolder
from rwkv_core.cache.disk_index import Row, Totals
from rwkv_core.cache.key import ModelKey
from rwkv_core.cache.snapshot import Snapshot, SnapshotKind
from rwkv_core.cache.tokens import PrefixDigests, TokenArray
from rwkv_core.errors import StateFileError

log = logging.getLogger(__name__)

DEFAULT_QUEUED_BYTES = 128 << 20

# How long a lookup waits for other processes before it does without the disk, and a write.
_LOOKUP_TIMEOUT_S = 0.25
_WRITE_TIMEOUT_S = 10.0

# After a write that failed nothing is written for so long.
_PAUSE_S = 60.0

# Writing takes a processor from whoever is waiting for a first token. So it begins when nothing has
# been looked up or put for so long, and does not wait longer for that than the second one says.
_CALM_S = 0.25
_LONGEST_WAIT_S = 2.0

# Uses that wait to be noted. Each holds on to the tokens of its prompt.
_MAX_TOUCHES = 64


@dataclass(frozen=True)
class DiskFound:
    """A snapshot for the first `num_tokens` tokens that were looked up."""

    num_tokens: int
    snapshot: Snapshot
    kind: SnapshotKind


@dataclass(frozen=True)
class DiskStatistics:
    """What is on disk now, all models together, and what this process has done since it began."""

    num_snapshots: int
    num_bytes: int
    budget: int
    num_queued_bytes: int
    num_written: int
    num_evicted: int
    num_dropped: int  # not written because too many were waiting, or because writing failed


@dataclass(frozen=True, eq=False)
class _Write:
    key: ModelKey
    tokens: TokenArray
    snapshot: Snapshot
    kind: SnapshotKind
    num_bytes: int  # of memory

    def begins_with(self, tokens: TokenArray) -> bool:
        return np.array_equal(self.tokens[: len(tokens)], tokens)


@dataclass(eq=False)
class _Forget:
    beginning: TokenArray
    is_over: bool = False
    is_done: bool = False


class DiskTier:
    """Snapshots by model and tokens. Safe for several threads; one of its own writes.

    Never fails: what cannot be read is not found, what cannot be written is not kept, and the log
    has a line about it. `close` it.
    """

    def __init__(
        self, folder: Path, budget: int, *, max_queued_bytes: int = DEFAULT_QUEUED_BYTES
    ) -> None:
        """`budget` in bytes is of the files. Snapshots that wait to be written may take
        `max_queued_bytes` of memory, or be one.
        """
        self.folder = folder
        self.budget = budget
        self._max_queued_bytes = max_queued_bytes
        self._damaged: set[str] = set()  # files that could not be deleted
        self._warned: set[str] = set()  # files, and the index, that could not be read
        self._reading = threading.Lock()  # guards the reader
        self._reader: DiskFolder | None = None
        self._writer: DiskFolder | None = None  # the thread's
        self._changed = threading.Condition()  # guards the fields below
        self._queue: list[_Write] = []
        self._in_progress: _Write | None = None
        self._is_busy = False
        self._touches: deque[tuple[ModelKey, TokenArray]] = deque(maxlen=_MAX_TOUCHES)
        self._forgetting: list[_Forget] = []
        self._saved: WeakSet[Snapshot] = WeakSet()  # those in memory that are on disk, too
        self._last_use_s = self._waiting_since_s = time.monotonic()
        self._num_in_a_hurry = 0  # calls that wait for the queue's end
        self._paused_until = 0.0
        self._has_failed = False
        self._is_closed = False
        self._num_written = self._num_dropped = 0
        self._open()
        self._thread: threading.Thread | None = None
        if self._writer is not None:
            self._thread = threading.Thread(target=self._serve, name="anser-states", daemon=True)
            self._thread.start()

    def lookup(
        self, key: ModelKey, tokens: TokenArray, *, longer_than: int = 0
    ) -> DiskFound | None:
        """The snapshot of the longest prefix with more tokens than that; counts as a use of it.

        Reads and checks the whole file, unless the snapshot still waits to be written.
        """
        with self._changed:
            self._last_use_s = time.monotonic()
        waiting = self._longest_waiting(key, tokens, longer_than)
        if waiting is not None:
            longer_than = waiting.num_tokens
        digests = PrefixDigests(tokens)
        at_most = len(tokens)
        while (row := self._longest(key, digests, longer_than, at_most)) is not None:
            snapshot = self._read(row, key, tokens[: row.num_tokens])
            if snapshot is not None:
                with self._changed:
                    self._saved.add(snapshot)
                self.touch(key, tokens[: row.num_tokens])
                return DiskFound(row.num_tokens, snapshot, row.kind)
            at_most = row.num_tokens - 1
        return waiting

    def put(
        self, key: ModelKey, tokens: TokenArray, snapshot: Snapshot, kind: SnapshotKind
    ) -> None:
        """Has a snapshot written in a calm moment.

        Of too many that wait, the oldest of the least kind goes.
        """
        with self._changed:
            is_known = snapshot in self._saved or any(
                write.snapshot is snapshot for write in self._waiting()
            )
            if self._thread is None or self._is_closed or is_known:
                return
            if time.monotonic() < self._paused_until:
                self._num_dropped += 1
                return
            self._last_use_s = time.monotonic()
            self._begin_to_wait()
            num_bytes = snapshot.nbytes + tokens.nbytes
            self._queue.append(_Write(key, tokens.copy(), snapshot, kind, num_bytes))
            while self._num_queued_bytes() > self._max_queued_bytes and len(self._queue) > 1:
                self._queue.remove(min(self._queue, key=lambda write: write.kind))
                self._num_dropped += 1
            self._changed.notify_all()

    @property
    def is_keeping_up(self) -> bool:
        """Whether what is put now will be written: it can be, and little waits."""
        with self._changed:
            is_open = self._thread is not None and not self._is_closed
            is_writing = is_open and time.monotonic() >= self._paused_until
            return is_writing and 2 * self._num_queued_bytes() <= self._max_queued_bytes

    def touch(self, key: ModelKey, tokens: TokenArray) -> None:
        """Notes a use of the snapshot for exactly these tokens, if there is one."""
        with self._changed:
            if self._thread is not None and not self._is_closed:
                self._begin_to_wait()
                self._touches.append((key, tokens))
                self._changed.notify_all()

    def forget(self, beginning: TokenArray, timeout_s: float) -> bool:
        """Has the snapshots, of any model, deleted that are behind texts which begin with these
        tokens; those that wait to be written never are. What is put meanwhile may stay.

        Waits until they are gone; False if that takes longer, or cannot be.
        """
        request = _Forget(beginning.copy())
        with self._changed:
            if self._thread is None or self._is_closed:
                return False
            self._queue = [each for each in self._queue if not each.begins_with(beginning)]
            self._forgetting.append(request)
            self._changed.notify_all()
            self._changed.wait_for(lambda: request.is_over or self._is_closed, timeout_s)
            return request.is_done

    def flush(self, timeout_s: float) -> bool:
        """Waits until all is written and deleted that was to be; False if that takes longer."""
        with self._changed:
            self._num_in_a_hurry += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(self._is_idle, timeout_s)
            finally:
                self._num_in_a_hurry -= 1

    def close(self, timeout_s: float = 10.0) -> None:
        """Writes what waits, for so long at most. Afterwards nothing is found and nothing kept."""
        self.flush(timeout_s)
        with self._changed:
            self._is_closed = True
            self._queue.clear()
            self._touches.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def statistics(self) -> DiskStatistics:
        totals = Totals(0, 0, 0)
        with self._reading:
            try:
                totals = self._reader.totals() if self._reader else totals
            except sqlite3.Error as error:
                self._warn_once(INDEX_NAME, error)
        with self._changed:
            return DiskStatistics(
                num_snapshots=totals.num_rows,
                num_bytes=totals.num_bytes,
                budget=self.budget,
                num_queued_bytes=self._num_queued_bytes(),
                num_written=self._num_written,
                num_evicted=self._writer.num_evicted if self._writer else 0,
                num_dropped=self._num_dropped,
            )

    def num_foreign(self, key: ModelKey) -> int:
        """How many snapshots there are if none is of this model, as it is computed here; else 0."""
        with self._reading:
            try:
                return self._reader.num_foreign(key) if self._reader else 0
            except sqlite3.Error as error:
                self._warn_once(INDEX_NAME, error)
                return 0

    # Reading

    def _longest_waiting(
        self, key: ModelKey, tokens: TokenArray, longer_than: int
    ) -> DiskFound | None:
        with self._changed:
            writes = self._waiting()
        found = [
            write
            for write in writes
            if write.key == key
            and longer_than < len(write.tokens) <= len(tokens)
            and np.array_equal(write.tokens, tokens[: len(write.tokens)])
        ]
        if not found:
            return None
        longest = max(found, key=lambda write: len(write.tokens))
        return DiskFound(len(longest.tokens), longest.snapshot, longest.kind)

    def _longest(
        self, key: ModelKey, digests: PrefixDigests, longer_than: int, at_most: int
    ) -> Row | None:
        with self._reading:
            if self._reader is None:
                return None
            try:
                while at_most > longer_than:
                    row = self._reader.longest(key, digests, longer_than, at_most)
                    if row is None or row.file not in self._damaged:
                        return row
                    at_most = row.num_tokens - 1
            except sqlite3.Error as error:
                self._warn_once(INDEX_NAME, error)
        return None

    def _read(self, row: Row, key: ModelKey, tokens: TokenArray) -> Snapshot | None:
        reader = self._reader
        if reader is None:
            return None
        try:
            return reader.read(row, key, tokens)
        except FileNotFoundError:  # most likely evicted by another process
            self._discard(row)
        except StateFileError as error:
            log.warning("skipping %s in %s: it %s", row.file, self.folder, error)
            self._discard(row)
        except OSError as error:  # the file may be sound
            self._warn_once(row.file, error)
        return None

    def _discard(self, row: Row) -> None:
        """Deletes a snapshot that cannot be used, or at least never looks at it again."""
        with self._reading:
            try:
                if self._reader is not None:
                    self._reader.discard(row)
            except (OSError, sqlite3.Error):
                self._damaged.add(row.file)

    def _warn_once(self, file: str, error: OSError | sqlite3.Error) -> None:
        if file not in self._warned:
            log.warning("cannot read %s in %s: %s", file, self.folder, error)
        self._warned.add(file)

    # Writing

    def _serve(self) -> None:
        """The thread."""
        assert self._writer is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_work() or self._is_closed)
                while (seconds := self._seconds_to_wait()) > 0:
                    self._changed.wait(seconds)
                if self._is_closed:
                    break
                touches = [*self._touches]
                self._touches.clear()
                forgetting, self._forgetting = self._forgetting, []
                write = self._in_progress = self._queue.pop(0) if self._queue else None
                self._is_busy = True
            try:
                for request in forgetting:
                    self._writer.forget(request.beginning)
                    request.is_done = True
                for key, tokens in touches:
                    self._writer.touch(key, PrefixDigests(tokens), len(tokens))
                if write is not None:
                    self._write(self._writer, write)
            except (OSError, sqlite3.Error) as error:
                self._pause(error)
            except Exception:
                log.exception("a state could not be written")
            finally:
                del touches
                with self._changed:
                    write = self._in_progress = None
                    self._is_busy = False
                    for request in forgetting:
                        request.is_over = True
                    self._changed.notify_all()
        self._writer.close()

    def _write(self, folder: DiskFolder, write: _Write) -> None:
        is_new = folder.add(write.key, write.tokens, write.snapshot, write.kind)
        with self._changed:
            self._has_failed = False
            self._num_written += is_new
            self._saved.add(write.snapshot)

    def _pause(self, error: OSError | sqlite3.Error) -> None:
        """Writes nothing for a while; says so once until it works again."""
        with self._changed:
            if not self._has_failed:
                log.warning("cannot write states to %s, going on without: %s", self.folder, error)
            self._has_failed = True
            self._paused_until = time.monotonic() + _PAUSE_S
            self._num_dropped += len(self._queue) + (self._in_progress is not None)
            self._queue.clear()

    def _begin_to_wait(self) -> None:
        """Called before something is added to the work."""
        if not self._has_work():
            self._waiting_since_s = time.monotonic()

    def _seconds_to_wait(self) -> float:
        """Until what waits should be written; 0 or less: now."""
        is_urgent = self._is_closed or self._forgetting or self._num_in_a_hurry
        if is_urgent or 2 * self._num_queued_bytes() > self._max_queued_bytes:
            return 0.0
        at_s = min(self._last_use_s + _CALM_S, self._waiting_since_s + _LONGEST_WAIT_S)
        return at_s - time.monotonic()

    def _num_queued_bytes(self) -> int:
        return sum(write.num_bytes for write in self._waiting())

    def _waiting(self) -> list[_Write]:
        """With the one that is being written."""
        return [*self._queue, *([self._in_progress] if self._in_progress else [])]

    def _is_idle(self) -> bool:
        return not self._has_work() and not self._is_busy

    def _has_work(self) -> bool:
        return bool(self._queue or self._touches or self._forgetting)

    def _open(self) -> None:
        try:
            self._writer = DiskFolder(self.folder, self.budget, _WRITE_TIMEOUT_S)
            self._writer.mend()
            self._reader = DiskFolder(self.folder, self.budget, _LOOKUP_TIMEOUT_S)
        except (OSError, sqlite3.Error) as error:
            log.warning("cannot write states to %s, going on without: %s", self.folder, error)
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._reader = self._open_read_only()

    def _open_read_only(self) -> DiskFolder | None:
        try:
            return DiskFolder(self.folder, self.budget, _LOOKUP_TIMEOUT_S, is_read_only=True)
        except sqlite3.Error:
            return None
