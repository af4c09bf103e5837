"""The folder of snapshots: safetensors files and an index, for any number of models.

    index.sqlite                 which snapshots there are (`disk_index.py`)
    snapshots/HEX.safetensors
    snapshots/tmp-…              one that is being written

A file is complete once it has its name, and gets it in the transaction that adds its row. A
snapshot that goes loses its file before its row. So a file without a row was written by a process
that died in that transaction, and a row without a file is of one that died while evicting: `mend`
puts either right in a transaction of its own, while nobody else is in one. Several processes may
share a folder.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np

from rwkv_core.cache.disk_index import DiskIndex, Row, Totals
from rwkv_core.cache.key import ModelKey
from rwkv_core.cache.memory_tier import SUPERSEDED_PARTS
from rwkv_core.cache.snapshot import Snapshot, SnapshotKind
from rwkv_core.cache.state_file import (
    EncodedState,
    decode_state,
    encode_state,
    read_head,
    read_tokens,
)
from rwkv_core.cache.tokens import PrefixDigests, TokenArray
from rwkv_core.errors import StateFileError

log = logging.getLogger(__name__)

INDEX_NAME = "index.sqlite"
FILES_NAME = "snapshots"

_FILE_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_TEMPORARY_PREFIX = "tmp-"
# A temporary file that has not grown for so long belongs to no living process.
_TEMPORARY_LIFE_S = 600.0


class DiskFolder:
    """The folder, through a connection of its own. Any thread may use it, one at a time.

    Methods raise OSError and sqlite3.Error.
    """

    def __init__(
        self, folder: Path, budget: int, timeout_s: float, *, is_read_only: bool = False
    ) -> None:
        """Makes the folder if there is none. `timeout_s` is how long a method waits for others.

        `budget` in bytes is of all files. An index that is damaged is made again from them.
        """
        self._files = folder / FILES_NAME
        self._budget = budget
        self._has_warned = False
        self.num_evicted = 0
        if not is_read_only:
            # States hold what was said: they are for nobody else's eyes.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files.mkdir(mode=0o700, exist_ok=True)
        self._index = _open_index(folder / INDEX_NAME, timeout_s, is_read_only)

    def close(self) -> None:
        self._index.close()

    def totals(self) -> Totals:
        return self._index.totals()

    def num_foreign(self, key: ModelKey) -> int:
        """How many there are if none is of this model, as this machine computes it; else 0."""
        return 0 if self._index.has_any(key.hex) else self._index.totals().num_rows

    def longest(
        self, key: ModelKey, digests: PrefixDigests, longer_than: int, at_most: int
    ) -> Row | None:
        """The row for the longest prefix of a text that has so many tokens."""
        return next(self._index.prefixes(key.hex, digests, longer_than, at_most), None)

    def read(self, row: Row, key: ModelKey, tokens: TokenArray) -> Snapshot:
        """The snapshot of a row, which is for these tokens. Needs no connection.

        Raises StateFileError for anything that is not, to the bit, what was written.
        """
        with (self._files / row.file).open("rb", buffering=0) as file:
            decoded = decode_state(file, os.fstat(file.fileno()).st_size)
        head = decoded.head
        if head.key != key or head.checksum != row.checksum:
            raise StateFileError("is another file than the one that was written there")
        if not np.array_equal(decoded.tokens, tokens):
            raise StateFileError("is of another text")
        return decoded.snapshot

    def add(
        self, key: ModelKey, tokens: TokenArray, snapshot: Snapshot, kind: SnapshotKind
    ) -> bool:
        """Writes a snapshot and makes room for it; False if it is there already, or too large."""
        digests = PrefixDigests(tokens)
        present = self._index.get(key.hex, digests, len(tokens))
        if present is not None:
            if kind > present.kind:
                with self._index.transaction():
                    self._index.set_kind(present.file, kind, is_superseded=_is_superseded(kind))
            self.touch(key, digests, len(tokens))
            return False
        encoded = encode_state(key, tokens, snapshot, kind)
        if encoded.num_bytes > self._budget:
            self._warn_too_large(encoded.num_bytes)
            return False
        with self._index.transaction():
            self._supersede(key, digests, len(tokens))
            self._make_room(encoded.num_bytes, kind)
        row = _row(key, digests, len(tokens), kind, encoded.num_bytes, encoded.checksum)
        path = self._files / row.file
        temporary = self._write_temporary(encoded)
        try:
            with self._index.transaction():
                if self._index.get(key.hex, digests, len(tokens)) is not None:
                    return False  # another process was faster
                self._make_room(encoded.num_bytes, kind)  # others may have filled it
                self._index.insert(row, time.time_ns())
                temporary.rename(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            temporary.unlink(missing_ok=True)
        self._synchronize_names()
        return True

    def touch(self, key: ModelKey, digests: PrefixDigests, num_tokens: int) -> None:
        """Notes a use of the snapshot for so many tokens, and of the system prompt before it."""
        rows = list(
            self._index.prefixes(key.hex, digests, 0, num_tokens, kind=SnapshotKind.SYSTEM_PROMPT)
        )
        used = self._index.get(key.hex, digests, num_tokens)
        if used is not None:
            rows.append(used)
        with self._index.transaction():
            for row in rows:
                self._index.touch(row.file)

    def discard(self, row: Row) -> None:
        """Deletes a snapshot."""
        with self._index.transaction():
            self._delete(row.file)

    def forget(self, beginning: TokenArray) -> None:
        """Deletes the snapshots, of any model, behind texts that begin with these tokens.

        Reads the tokens of all that are long enough: only a file knows them.
        """
        files = self._index.files_of_at_least(len(beginning))
        doomed = [file for file in files if self._begins_with(file, beginning)]
        if doomed:
            with self._index.transaction():
                for file in doomed:
                    self._delete(file)
            # A file that a power cut brings back would be given a row again.
            self._synchronize_names()

    def _begins_with(self, name: str, beginning: TokenArray) -> bool:
        try:
            with (self._files / name).open("rb", buffering=0) as file:
                head = read_head(file, os.fstat(file.fileno()).st_size)
                tokens = read_tokens(file, head, len(beginning))
        except (FileNotFoundError, StateFileError):  # gone, or of no use to anybody
            return False
        return np.array_equal(tokens, beginning)

    def mend(self) -> None:
        """Puts right what processes that were killed have left, and a budget that has shrunk."""
        with self._index.transaction():
            rows = self._index.files()
            names = {entry.name for entry in os.scandir(self._files)}
            for file in rows - names:
                self._index.delete(file)
        oldest = time.time() - _TEMPORARY_LIFE_S
        for name in names - rows:
            path = self._files / name
            try:
                if _FILE_NAME.fullmatch(name):
                    self._adopt(path)
                elif name.startswith(_TEMPORARY_PREFIX) and path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                pass  # another process was at it
            except StateFileError as error:
                log.warning("deleting %s: it %s", path, error)
                path.unlink(missing_ok=True)
        with self._index.transaction():
            self._make_room(0, SnapshotKind.TURN)

    def _adopt(self, path: Path) -> None:
        """Gives a file a row. Its data is checked when it is used."""
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            head = read_head(file, status.st_size)
            digests = PrefixDigests(read_tokens(file, head))
        row = _row(
            head.key, digests, head.num_tokens, head.kind, status.st_size, head.checksum, path.name
        )
        with self._index.transaction():
            other = self._index.get(row.model, digests, head.num_tokens)
            if other is None:
                self._index.insert(row, status.st_mtime_ns)
            elif other.file != path.name:
                path.unlink(missing_ok=True)

    def _warn_too_large(self, num_bytes: int) -> None:
        if not self._has_warned:
            log.warning(
                "states of %d MB are not kept in %s: all together may take %d MB",
                num_bytes // 10**6,
                self._files,
                self._budget // 10**6,
            )
        self._has_warned = True

    def _write_temporary(self, encoded: EncodedState) -> Path:
        descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=self._files)
        try:
            with open(descriptor, "wb", buffering=0) as file:
                for part in encoded.parts:
                    rest = part
                    while rest:
                        rest = rest[file.write(rest) :]
                os.fsync(descriptor)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)

    def _synchronize_names(self) -> None:
        """Has a power cut leave the files that there are, and no other; their rows follow."""
        descriptor = os.open(self._files, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # In a transaction

    def _supersede(self, key: ModelKey, digests: PrefixDigests, num_tokens: int) -> None:
        """Marks the snapshot before one of so many tokens."""
        before = self.longest(key, digests, 0, num_tokens - 1)
        if before is not None and before.kind is not SnapshotKind.SYSTEM_PROMPT:
            self._index.mark_superseded(before.file)

    def _make_room(self, num_bytes: int, kind: SnapshotKind) -> None:
        """Evicts until a file of so many bytes fits.

        As in memory, superseded snapshots may keep a part of the budget.
        """
        totals = self._index.totals()
        superseded, newest = totals.superseded_bytes, totals.newest_bytes
        share = self._budget // SUPERSEDED_PARTS - num_bytes * _is_superseded(kind)
        while superseded + newest + num_bytes > self._budget and superseded + newest:
            is_superseded = superseded > max(share, 0) or not newest
            file, size = self._index.least_recently_used(is_superseded=is_superseded)
            self._delete(file)
            superseded -= size if is_superseded else 0
            newest -= 0 if is_superseded else size
            self.num_evicted += 1

    def _delete(self, file: str) -> None:
        (self._files / file).unlink(missing_ok=True)
        self._index.delete(file)


def _row(
    key: ModelKey,
    digests: PrefixDigests,
    num_tokens: int,
    kind: SnapshotKind,
    num_bytes: int,
    checksum: str,
    file: str | None = None,
) -> Row:
    """A row of all `num_tokens` tokens of a text; of a new file if it has none."""
    return Row(
        file=file or f"{uuid.uuid4().hex}.safetensors",
        model=key.hex,
        num_tokens=num_tokens,
        digest=digests.of(num_tokens),
        anchor=digests.anchor_of(num_tokens),
        kind=kind,
        num_bytes=num_bytes,
        checksum=checksum,
        is_superseded=_is_superseded(kind),
    )


def _is_superseded(kind: SnapshotKind) -> bool:
    """Whether it is from the start: a checkpoint is written when it leaves the memory, and then
    its text has usually gone on.
    """
    return kind is SnapshotKind.CHECKPOINT


def _open_index(path: Path, timeout_s: float, is_read_only: bool) -> DiskIndex:
    try:
        return DiskIndex(path, timeout_s, is_read_only=is_read_only)
    except sqlite3.DatabaseError as error:
        # The subclasses say that it cannot be had now; the class itself, that it is no good.
        if is_read_only or type(error) is not sqlite3.DatabaseError:
            raise
        log.warning("%s is damaged (%s) and is made again", path, error)
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    return DiskIndex(path, timeout_s)
