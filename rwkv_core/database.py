"""What our SQLite databases have in common: several processes may use each at once."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Switching a new database to its log does not wait for another process that does it, as the rest
# would.
_OPEN_TRIES = 100
_OPEN_PAUSE_S = 0.02


def use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Has readers and the one writer not wait for each other. Raises sqlite3.Error."""
    for tries_left in reversed(range(_OPEN_TRIES)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not tries_left or "locked" not in str(error):
                raise
            time.sleep(_OPEN_PAUSE_S)


class OtherVersionError(sqlite3.DatabaseError):
    """A database that another version of Anser made, and that only it can use: to be left alone."""

    def __init__(self, path: str | os.PathLike[str], version: int, expected: int) -> None:
        super().__init__(
            f"{os.fspath(path)} was made by another version of Anser (format {version}, not "
            f"{expected}) and is left as it is; set ANSER_STATES to another folder, or run that "
            "version"
        )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Shuts other writers out, those of other processes too. Undone if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
