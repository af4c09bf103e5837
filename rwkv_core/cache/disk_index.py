"""Which snapshots are on disk: a SQLite database beside their files.

A row is only there once its file is complete. Readers and one writer at a time, from any number of
processes, do not wait for each other.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from rwkv_core.cache.snapshot import SnapshotKind
from rwkv_core.cache.tokens import ANCHOR_TOKENS, PrefixDigests
from rwkv_core.database import OtherVersionError, transaction, use_write_ahead_log

_VERSION = 1

_TABLE = """
CREATE TABLE snapshots (
    file TEXT PRIMARY KEY,
    model TEXT NOT NULL,  -- ModelKey.hex
    num_tokens INTEGER NOT NULL,
    digest BLOB NOT NULL,  -- of all tokens
    anchor BLOB NOT NULL,  -- the last one in them
    kind INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    checksum TEXT NOT NULL,
    is_superseded INTEGER NOT NULL,
    last_use INTEGER NOT NULL,  -- nanoseconds since 1970
    UNIQUE (model, anchor, num_tokens, digest)
)
"""
# Has all that choosing what to evict asks for.
_INDEX = """
CREATE INDEX by_use ON snapshots (is_superseded, last_use, num_bytes, file)
"""


@dataclass(frozen=True)
class Row:
    """A snapshot on disk. `file` is the name of its file."""

    file: str
    model: str
    num_tokens: int
    digest: bytes
    anchor: bytes
    kind: SnapshotKind
    num_bytes: int
    checksum: str
    is_superseded: bool


@dataclass(frozen=True)
class Totals:
    """Bytes and number of the snapshots that are superseded, or not."""

    superseded_bytes: int
    newest_bytes: int
    num_rows: int

    @property
    def num_bytes(self) -> int:
        return self.superseded_bytes + self.newest_bytes


_Fields: TypeAlias = tuple[Any, ...]  # in the order of `Row`


class DiskIndex:
    """One connection. Any thread may use it, one at a time. Every method may raise sqlite3.Error.

    The methods that change something belong into a `transaction`.
    """

    def __init__(self, path: Path, timeout_s: float, *, is_read_only: bool = False) -> None:
        """Makes the database if there is none. `timeout_s` is how long a method waits for others.

        Raises sqlite3.DatabaseError, none of its subclasses, when the file is damaged, and
        OtherVersionError. `is_read_only` is for a disk that is: what was not yet in the file itself
        is missed then.
        """
        self._path = path
        uri = f"file:{quote(str(path))}{'?immutable=1' if is_read_only else ''}"
        self._connection = sqlite3.connect(
            uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            if not is_read_only:
                self._prepare()
            self._check()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Shuts other writers out, those of other processes too. Undone if it raises."""
        return transaction(self._connection)

    def prefixes(
        self,
        model: str,
        digests: PrefixDigests,
        longer_than: int,
        at_most: int,
        kind: SnapshotKind | None = None,
    ) -> Iterator[Row]:
        """The rows for prefixes of a text that have so many tokens, longest first; of one kind if
        that is given.
        """
        of_kind = "" if kind is None else f" AND kind = {int(kind)}"
        for index in range(at_most // ANCHOR_TOKENS, longer_than // ANCHOR_TOKENS - 1, -1):
            num_tokens, digest = -1, b""
            # Many texts may share their last anchor, the system prompt's say, and a length.
            for fields in self._select(
                "model = ? AND anchor = ? AND num_tokens > ? AND num_tokens <= ?"
                f"{of_kind} ORDER BY num_tokens DESC",
                (model, digests.anchor(index), longer_than, at_most),
            ):
                if fields[2] != num_tokens:
                    num_tokens, digest = fields[2], digests.of(fields[2])
                if fields[3] == digest:
                    yield _row(fields)

    def get(self, model: str, digests: PrefixDigests, num_tokens: int) -> Row | None:
        """The row for exactly the first `num_tokens` tokens of a text."""
        found = self._select(
            "model = ? AND anchor = ? AND num_tokens = ? AND digest = ?",
            (model, digests.anchor_of(num_tokens), num_tokens, digests.of(num_tokens)),
        )
        return _row(found[0]) if found else None

    def insert(self, row: Row, last_use: int) -> None:
        """`last_use` in nanoseconds since 1970."""
        self._connection.execute(
            "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.file,
                row.model,
                row.num_tokens,
                row.digest,
                row.anchor,
                int(row.kind),
                row.num_bytes,
                row.checksum,
                row.is_superseded,
                last_use,
            ),
        )

    def touch(self, file: str) -> None:
        """Makes a snapshot the most recently used."""
        self._connection.execute(
            "UPDATE snapshots SET last_use = ? WHERE file = ?", (time.time_ns(), file)
        )

    def set_kind(self, file: str, kind: SnapshotKind, *, is_superseded: bool) -> None:
        self._connection.execute(
            "UPDATE snapshots SET kind = ?, is_superseded = ? WHERE file = ?",
            (int(kind), is_superseded, file),
        )

    def mark_superseded(self, file: str) -> None:
        self._connection.execute("UPDATE snapshots SET is_superseded = 1 WHERE file = ?", (file,))

    def delete(self, file: str) -> None:
        self._connection.execute("DELETE FROM snapshots WHERE file = ?", (file,))

    def totals(self) -> Totals:
        rows = self._connection.execute(
            "SELECT is_superseded, SUM(num_bytes), COUNT(*) FROM snapshots GROUP BY is_superseded"
        ).fetchall()
        found = {is_superseded: num_bytes for is_superseded, num_bytes, _ in rows}
        return Totals(found.get(1, 0), found.get(0, 0), sum(count for _, _, count in rows))

    def has_any(self, model: str) -> bool:
        ((is_so,),) = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM snapshots WHERE model = ?)", (model,)
        )
        return bool(is_so)

    def least_recently_used(self, *, is_superseded: bool) -> tuple[str, int]:
        """File and bytes of one of those, of which there is one."""
        ((file, num_bytes),) = self._connection.execute(
            "SELECT file, num_bytes FROM snapshots WHERE is_superseded = ?"
            " ORDER BY last_use LIMIT 1",
            (is_superseded,),
        )
        return file, num_bytes

    def files_of_at_least(self, num_tokens: int) -> list[str]:
        """Those of snapshots behind so many tokens or more."""
        rows = self._connection.execute(
            "SELECT file FROM snapshots WHERE num_tokens >= ?", (num_tokens,)
        )
        return [file for (file,) in rows]

    def files(self) -> set[str]:
        return {file for (file,) in self._connection.execute("SELECT file FROM snapshots")}

    def _select(self, condition: str, values: tuple[object, ...]) -> list[_Fields]:
        return self._connection.execute(
            "SELECT file, model, num_tokens, digest, anchor, kind, num_bytes, checksum,"
            f" is_superseded FROM snapshots WHERE {condition}",
            values,
        ).fetchall()

    def _prepare(self) -> None:
        use_write_ahead_log(self._connection)
        # A commit survives the process at once, and a power cut some time later: until then a cut
        # takes back the newest rows, never part of one.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        with self.transaction():
            if self._version() == 0:
                self._connection.execute(_TABLE)
                self._connection.execute(_INDEX)
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _check(self) -> None:
        if self._version() != _VERSION:
            raise OtherVersionError(self._path, self._version(), _VERSION)
        ((problem,),) = self._connection.execute("PRAGMA quick_check(1)")
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)

    def _version(self) -> int:
        ((version,),) = self._connection.execute("PRAGMA user_version")
        return int(version)


def _row(fields: _Fields) -> Row:
    file, model, num_tokens, digest, anchor, kind, num_bytes, checksum, is_superseded = fields
    try:
        kind = SnapshotKind(kind)
    except ValueError as error:
        raise sqlite3.DatabaseError(f"a row is damaged: {error}") from None
    return Row(
        file, model, num_tokens, digest, anchor, kind, num_bytes, checksum, bool(is_superseded)
    )
