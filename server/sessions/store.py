"""The histories of named sessions: one SQLite database, on disk beside the states or in memory.

Messages form trees: each knows the one before it, and a session its last one. So a turn writes its
own messages only, and a fork none. `num_uses` counts the sessions and messages that point at a
message; with the last of them it goes.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rwkv_core.database import OtherVersionError, transaction, use_write_ahead_log
from rwkv_core.errors import AnserError

log = logging.getLogger(__name__)

DATABASE_NAME = "sessions.sqlite"

# What one client may fill: a history (a million tokens of English), and the store with histories.
MAX_SESSION_BYTES = 4 << 20
MAX_MESSAGES = 10_000
MAX_SESSIONS = 100_000
_MAX_DISK_BYTES = 4 << 30
_MAX_MEMORY_BYTES = 256 << 20

_VERSION = 1
_TIMEOUT_S = 10.0

_TABLES = (
    """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- so that none ever stands for another message
    parent INTEGER,  -- the message before it
    num_messages INTEGER NOT NULL,  -- up to this one
    num_bytes INTEGER NOT NULL,  -- of their bodies
    num_uses INTEGER NOT NULL,
    body TEXT NOT NULL  -- JSON
)""",
    """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    weights TEXT NOT NULL,
    cache_scope TEXT NOT NULL,
    tools TEXT NOT NULL,  -- JSON
    head INTEGER,  -- the last message
    num_tokens INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL
)""",
)

_SELECT = """
SELECT s.id, s.model, s.weights, s.cache_scope, s.tools, s.head, coalesce(m.num_messages, 0),
    coalesce(m.num_bytes, 0), s.num_tokens, s.created_ns, s.updated_ns
FROM sessions s LEFT JOIN messages m ON m.id = s.head
"""
_CHAIN = """
WITH RECURSIVE chain (id, parent, num_messages, body) AS (
    SELECT id, parent, num_messages, body FROM messages WHERE id = ?
    UNION ALL
    SELECT m.id, m.parent, m.num_messages, m.body FROM messages m JOIN chain ON m.id = chain.parent
)
"""


class SessionChangedError(AnserError):
    """A session is no longer what it was when the change to it began."""


class SessionExistsError(AnserError):
    """The id that a new session is to have is taken."""


class SessionRangeError(AnserError):
    """A session has fewer messages than are asked for."""


class SessionsFullError(AnserError):
    """There are as many sessions, or they are as long, as may be."""


class SessionStoreError(AnserError):
    """The database cannot be read or written."""


@dataclass(frozen=True)
class Session:
    """A named chat. `head` stands for its messages: where it is equal, so are they.

    `model` is the model's name as it is stored, `weights` what in it the states depend on.
    `num_tokens` of its last prompt and reply is 0 where that is not known.
    """

    id: str
    model: str
    weights: str
    cache_scope: str = ""
    tools: str = "[]"
    head: int | None = None
    num_messages: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    created_ns: int = 0
    updated_ns: int = 0


@dataclass(frozen=True)
class StoredMessage:
    """A message of a session, and all before it. `body` is JSON."""

    head: int
    body: str


@dataclass(frozen=True)
class Deleted:
    """A session that is gone. The first `num_shared` of its messages are other sessions' too."""

    session: Session
    messages: list[StoredMessage]
    num_shared: int
    is_scope_used: bool  # whether another session has the same cache scope


class SessionStore:
    """Sessions by id. Safe for several threads; several processes may share a folder.

    A change is on disk, whole, when its method returns. Every method may raise SessionStoreError.
    """

    def __init__(self, folder: Path | None) -> None:
        """None: in memory. So is what cannot be kept in the folder, with a warning."""
        self._lock = threading.Lock()  # guards the connection
        self._max_bytes = _MAX_MEMORY_BYTES if folder is None else _MAX_DISK_BYTES
        self._connection = _open(folder)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def get(self, session_id: str) -> Session | None:
        with self._using() as connection:
            return _get(connection, session_id)

    def read(self, session_id: str) -> tuple[Session, list[StoredMessage]] | None:
        """A session with its messages, the first one first."""
        with self._using() as connection, _reading(connection):
            session = _get(connection, session_id)
            if session is None:
                return None
            return session, _messages(connection, session.head)

    def all(self, limit: int | None = None) -> list[Session]:
        """The one that was changed last first; `limit` is the most that are read."""
        with self._using() as connection:
            rows = connection.execute(
                f"{_SELECT} ORDER BY s.updated_ns DESC, s.id LIMIT ?",
                (-1 if limit is None else limit,),  # SQLite's word for no limit
            ).fetchall()
        return [Session(*row) for row in rows]

    def save(
        self, session: Session, bodies: Sequence[str], *, replacing: Session | None
    ) -> Session:
        """Stores a session whose messages are those at its `head` and then `bodies`.

        Raises SessionChangedError unless the stored one is as `replacing` (None: there is none),
        whose messages those at the head must be among; SessionsFullError.
        """
        with self._using() as connection, transaction(connection):
            present = _get(connection, session.id)
            is_same = (present is None) == (replacing is None)
            if present is not None and replacing is not None:
                is_same = (present.head, present.cache_scope) == (
                    replacing.head,
                    replacing.cache_scope,
                )
            if not is_same:
                raise SessionChangedError(
                    f"session '{session.id}' was changed or deleted meanwhile; the turn is not kept"
                )
            return self._write(connection, session, bodies, present)

    def replace(self, session: Session, bodies: Sequence[str]) -> Session:
        """Stores a session of these messages, whatever is stored under its id."""
        with self._using() as connection, transaction(connection):
            present = _get(connection, session.id)
            return self._write(connection, replace(session, head=None), bodies, present)

    def fork(self, session_id: str, new_id: str, num_messages: int | None) -> Session | None:
        """A new session with the messages of another, or the first so many; None without that one.

        Copies no message. Raises SessionExistsError, SessionRangeError, SessionsFullError.
        """
        with self._using() as connection, transaction(connection):
            source = _get(connection, session_id)
            if source is None:
                return None
            if _get(connection, new_id) is not None:
                raise SessionExistsError(f"session '{new_id}' already exists")
            fork = replace(source, id=new_id, created_ns=0)
            if num_messages is not None and not 0 <= num_messages <= source.num_messages:
                raise SessionRangeError(
                    f"at is {num_messages}, which must be 0 to {source.num_messages}: "
                    f"session '{session_id}' has no more messages"
                )
            if num_messages is not None and num_messages != source.num_messages:
                found = connection.execute(
                    f"{_CHAIN} SELECT id FROM chain WHERE num_messages = ?",
                    (source.head, num_messages),
                ).fetchone()
                fork = replace(fork, head=found[0] if found else None, num_tokens=0)
            return self._write(connection, fork, (), None)

    def delete(self, session_id: str) -> Deleted | None:
        """What has gone; None if there is no such session."""
        with self._using() as connection, transaction(connection):
            session = _get(connection, session_id)
            if session is None:
                return None
            messages = _messages(connection, session.head)
            connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
            num_gone = _release(connection, session.head)
            ((is_scope_used,),) = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM sessions WHERE cache_scope = ?)",
                (session.cache_scope,),
            )
            num_shared = len(messages) - num_gone
            return Deleted(session, messages, num_shared, is_scope_used=bool(is_scope_used))

    def _write(
        self,
        connection: sqlite3.Connection,
        session: Session,
        bodies: Sequence[str],
        present: Session | None,
    ) -> Session:
        """In a transaction: stores a session in the place of the present one."""
        if present is None or bodies:
            self._check_room(connection, is_new=present is None)
        now = time.time_ns()
        created_ns = present.created_ns if present else now
        head = _add_messages(connection, session.head, bodies)
        _use(connection, head)
        connection.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                session.id,
                session.model,
                session.weights,
                session.cache_scope,
                session.tools,
                head,
                session.num_tokens,
                created_ns,
                now,
            ),
        )
        if present is not None:
            _release(connection, present.head)
        stored = _get(connection, session.id)
        assert stored is not None
        return stored

    def _check_room(self, connection: sqlite3.Connection, *, is_new: bool) -> None:
        if is_new:
            ((count,),) = connection.execute("SELECT count(*) FROM sessions")
            if count >= MAX_SESSIONS:
                raise SessionsFullError(
                    f"there are {count} sessions, which is the most; delete some"
                )
        used = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
        if used * _pragma(connection, "page_size") > self._max_bytes:
            raise SessionsFullError(
                f"all sessions together have {self._max_bytes >> 20} MB, which is the most; "
                "delete some"
            )

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise SessionStoreError(
                    f"the sessions cannot be read or written: {error}"
                ) from error


def _open(folder: Path | None) -> sqlite3.Connection:
    """The database, in memory where it cannot be kept on disk."""
    if folder is None:
        return _connect(":memory:")
    path = folder / DATABASE_NAME
    try:
        # Sessions hold what was said: they are for nobody else's eyes.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return _connect(str(path))
        except sqlite3.DatabaseError as error:
            # The subclasses say that it cannot be had now; the class itself, that it is no good.
            if type(error) is not sqlite3.DatabaseError:
                raise
            _set_aside(path, error)
            return _connect(str(path))
    except (OSError, sqlite3.Error) as error:
        log.warning("cannot keep sessions in %s, keeping them in memory: %s", folder, error)
        return _connect(":memory:")


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        use_write_ahead_log(connection)
        # A turn that was answered survives a power cut, too.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted is nobody's any more
        with transaction(connection):
            version = _pragma(connection, "user_version")
            if version == 0:
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise OtherVersionError(path, version, _VERSION)
            ((count,),) = connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE name IN ('messages', 'sessions')"
            )
            if count != len(_TABLES):
                raise sqlite3.DatabaseError("it has other tables")
    except BaseException:
        connection.close()
        raise
    return connection


def _set_aside(path: Path, error: sqlite3.DatabaseError) -> None:
    """Makes room for a new database. The damaged one is left for its owner to look at."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    log.warning("%s is damaged (%s): it is kept as %s", path, error, aside.name)
    for end in ("", "-wal", "-shm"):
        part = path.with_name(path.name + end)
        if part.exists():
            part.rename(aside.with_name(aside.name + end))


@contextmanager
def _reading(connection: sqlite3.Connection) -> Iterator[None]:
    """Several statements that see the same."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def _get(connection: sqlite3.Connection, session_id: str) -> Session | None:
    row = connection.execute(f"{_SELECT} WHERE s.id = ?", (session_id,)).fetchone()
    return Session(*row) if row else None


def _messages(connection: sqlite3.Connection, head: int | None) -> list[StoredMessage]:
    """All up to `head`, the first one first."""
    rows = connection.execute(f"{_CHAIN} SELECT id, body FROM chain ORDER BY num_messages", (head,))
    return [StoredMessage(*row) for row in rows]


def _add_messages(
    connection: sqlite3.Connection, head: int | None, bodies: Sequence[str]
) -> int | None:
    """Adds messages after those of `head`; returns the last one. It has no use yet."""
    num_messages = num_bytes = 0
    if head is not None:
        ((num_messages, num_bytes),) = connection.execute(
            "SELECT num_messages, num_bytes FROM messages WHERE id = ?", (head,)
        )
    for body in bodies:
        num_messages += 1
        num_bytes += len(body.encode())
        _use(connection, head)
        head = connection.execute(
            "INSERT INTO messages (parent, num_messages, num_bytes, num_uses, body)"
            " VALUES (?, ?, ?, 0, ?)",
            (head, num_messages, num_bytes, body),
        ).lastrowid
    return head


def _use(connection: sqlite3.Connection, head: int | None) -> None:
    connection.execute("UPDATE messages SET num_uses = num_uses + 1 WHERE id = ?", (head,))


def _release(connection: sqlite3.Connection, head: int | None) -> int:
    """One use less; what nothing uses any more goes, and what only that has used: so many."""
    num_gone = 0
    while head is not None:
        connection.execute("UPDATE messages SET num_uses = num_uses - 1 WHERE id = ?", (head,))
        ((num_uses, parent),) = connection.execute(
            "SELECT num_uses, parent FROM messages WHERE id = ?", (head,)
        )
        if num_uses > 0:
            break
        connection.execute("DELETE FROM messages WHERE id = ?", (head,))
        head = parent
        num_gone += 1
    return num_gone


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    ((value,),) = connection.execute(f"PRAGMA {name}")
    return value
