"""The database of sessions: what it keeps through forks, deletions, damage, and kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from server.sessions import store as server_store
from server.sessions.store import (
    DATABASE_NAME,
    Session,
    SessionChangedError,
    SessionExistsError,
    SessionRangeError,
    SessionsFullError,
    SessionStore,
    SessionStoreError,
)
from tests.tools.anser_command import PATIENCE_S, REPOSITORY

NEW = Session("a", "model:latest", "sha256:0")


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SessionStore]:
    folder = tmp_path / "states" if request.param == "disk" else None
    with closing(SessionStore(folder)) as store:
        yield store


def bodies(store: SessionStore, session_id: str) -> list[str]:
    found = store.read(session_id)
    assert found is not None
    session, messages = found
    assert session == store.get(session_id)
    assert session.num_messages == len(messages)
    assert session.num_bytes == sum(len(each.body.encode()) for each in messages)
    assert session.head == (messages[-1].head if messages else None)
    return [each.body for each in messages]


def num_stored(store: SessionStore) -> int:
    """Messages in the database, of whatever session."""
    ((count,),) = store._connection.execute("SELECT count(*) FROM messages")
    return int(count)


def test_turns_and_edits(store: SessionStore) -> None:
    assert store.get("a") is None
    assert store.read("a") is None
    first = store.save(replace(NEW, num_tokens=5), ["1", "2"], replacing=None)
    assert first.num_tokens == 5
    assert bodies(store, "a") == ["1", "2"]
    second = store.save(first, ["3 é", "4"], replacing=first)
    assert bodies(store, "a") == ["1", "2", "3 é", "4"]
    assert (second.created_ns, second.model) == (first.created_ns, NEW.model)
    assert second.updated_ns > first.updated_ns
    edited = store.save(replace(second, head=first.head), ["5"], replacing=second)
    assert bodies(store, "a") == ["1", "2", "5"]
    assert num_stored(store) == 3
    shorter = store.save(replace(edited, head=first.head), [], replacing=edited)
    assert bodies(store, "a") == ["1", "2"]
    store.save(replace(shorter, head=None), ["6"], replacing=shorter)
    assert bodies(store, "a") == ["6"]
    assert num_stored(store) == 1
    assert store.delete("a")
    assert not store.delete("a")
    assert num_stored(store) == 0


def test_who_comes_too_late(store: SessionStore) -> None:
    first = store.save(NEW, ["1"], replacing=None)
    with pytest.raises(SessionChangedError, match="session 'a'"):
        store.save(NEW, ["2"], replacing=None)
    second = store.save(first, ["2"], replacing=first)
    with pytest.raises(SessionChangedError):
        store.save(first, ["3"], replacing=first)
    store.delete("a")
    with pytest.raises(SessionChangedError):
        store.save(second, ["3"], replacing=second)
    assert num_stored(store) == 0
    again = store.save(NEW, ["1"], replacing=None)
    assert again.head != first.head  # so that it is not taken for the one that was deleted
    store.replace(replace(NEW, cache_scope="other"), ["9"])
    with pytest.raises(SessionChangedError):
        store.save(again, ["3"], replacing=again)
    assert bodies(store, "a") == ["9"]


def test_forks_share_their_messages(store: SessionStore) -> None:
    tools = '[{"type":"function"}]'
    session = store.save(
        replace(NEW, tools=tools, cache_scope="s", num_tokens=9), [*"12345"], replacing=None
    )
    whole = store.fork("a", "b", None)
    early = store.fork("a", "c", 2)
    empty = store.fork("a", "d", 0)
    assert whole is not None
    assert early is not None
    assert empty is not None
    assert num_stored(store) == 5
    assert (whole.tools, whole.cache_scope, whole.num_tokens) == (tools, "s", 9)
    assert (early.num_messages, early.num_tokens, empty.num_messages) == (2, 0, 0)
    store.save(early, ["6"], replacing=early)
    store.save(empty, ["7"], replacing=empty)
    assert bodies(store, "a") == bodies(store, "b") == [*"12345"]
    assert bodies(store, "c") == ["1", "2", "6"]
    assert bodies(store, "d") == ["7"]
    assert store.delete("a")
    assert bodies(store, "b") == [*"12345"]
    assert store.delete("b")
    assert bodies(store, "c") == ["1", "2", "6"]
    assert num_stored(store) == 4
    assert store.fork("a", "e", None) is None
    with pytest.raises(SessionExistsError, match="'c' already exists"):
        store.fork("d", "c", None)
    for at in (-1, 2):
        with pytest.raises(SessionRangeError, match="0 to 1"):
            store.fork("d", "e", at)
    assert session.id not in [each.id for each in store.all()]


def test_what_is_changed_is_first_in_the_list(store: SessionStore) -> None:
    for name in "abc":
        store.save(replace(NEW, id=name), ["1"], replacing=None)
    session = store.get("a")
    assert session is not None
    store.save(session, ["2"], replacing=session)
    assert [each.id for each in store.all()] == ["a", "c", "b"]
    assert store.all()[0] == store.get("a")


@pytest.mark.parametrize("seed", range(5))
def test_random_changes(store: SessionStore, seed: int) -> None:
    rng = random.Random(seed)
    expected: dict[str, list[str]] = {}
    for step in range(200):
        kind = rng.choice(["new", "turn", "turn", "edit", "fork", "replace", "delete"])
        if kind == "new" or not expected:
            expected[f"s{step}"] = [str(step)]
            store.save(replace(NEW, id=f"s{step}"), [str(step)], replacing=None)
            continue
        name = rng.choice([*expected])
        found = store.read(name)
        assert found is not None
        session, messages = found
        end = rng.randrange(len(messages) + 1)
        if kind in ("turn", "edit"):
            end = len(messages) if kind == "turn" else end
            head = messages[end - 1].head if end else None
            new = [f"{step}a", f"{step}b"]
            store.save(replace(session, head=head), new, replacing=session)
            expected[name] = expected[name][:end] + new
        elif kind == "fork":
            store.fork(name, f"f{step}", end)
            expected[f"f{step}"] = expected[name][:end]
        elif kind == "replace":
            store.replace(session, ["x"])
            expected[name] = ["x"]
        else:
            store.delete(name)
            del expected[name]
    assert {each.id: bodies(store, each.id) for each in store.all()} == expected
    for name in expected:
        store.delete(name)
    assert num_stored(store) == 0


def test_several_threads_lose_nothing(store: SessionStore) -> None:
    def write(number: int) -> None:
        session = store.save(replace(NEW, id=f"s{number}"), ["0"], replacing=None)
        for turn in range(1, 20):
            session = store.save(session, [str(turn)], replacing=session)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert bodies(store, f"s{number}") == [str(turn) for turn in range(20)]


def test_it_has_an_end(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_store, "MAX_SESSIONS", 2)
    first = store.save(NEW, ["1"], replacing=None)
    store.save(replace(NEW, id="b"), ["1"], replacing=None)
    with pytest.raises(SessionsFullError, match="2 sessions"):
        store.save(replace(NEW, id="c"), ["1"], replacing=None)
    with pytest.raises(SessionsFullError):
        store.fork("a", "c", None)
    first = store.save(first, ["2"], replacing=first)
    monkeypatch.setattr(store, "_max_bytes", 1 << 20)
    large = "x" * (300 << 10)
    with pytest.raises(SessionsFullError, match="1 MB"):
        for _ in range(10):
            first = store.save(first, [large], replacing=first)
    assert len(bodies(store, "a")) < 7
    assert store.delete("a")
    store.save(NEW, ["1"], replacing=None)


def test_two_servers_share_a_folder(tmp_path: Path) -> None:
    with closing(SessionStore(tmp_path)) as one, closing(SessionStore(tmp_path)) as other:
        first = one.save(NEW, ["1"], replacing=None)
        assert bodies(other, "a") == ["1"]
        other.save(first, ["2"], replacing=first)
        with pytest.raises(SessionChangedError):
            one.save(first, ["3"], replacing=first)
        assert bodies(one, "a") == ["1", "2"]


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    with closing(SessionStore(folder)):
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["noise", "another"])
def test_a_damaged_database_is_set_aside(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / DATABASE_NAME
    if damage == "noise":
        path.write_bytes(random.Random(0).randbytes(10_000))
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE other (x)")
            connection.execute("PRAGMA user_version = 1")
    with closing(SessionStore(tmp_path)) as store:
        store.save(NEW, ["1"], replacing=None)
    assert "is damaged" in caplog.text
    (aside,) = tmp_path.glob(f"{DATABASE_NAME}.damaged-*")
    assert aside.stat().st_size
    with closing(SessionStore(tmp_path)) as store:
        assert bodies(store, "a") == ["1"]


def test_a_database_of_another_version_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / DATABASE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with closing(SessionStore(tmp_path)) as store:
        store.save(NEW, ["1"], replacing=None)
        assert bodies(store, "a") == ["1"]
    (record,) = caplog.records
    assert f"{path} was made by another version of Anser (format 99, not 1)" in record.message
    assert [each.name for each in tmp_path.iterdir()] == [DATABASE_NAME]


def test_a_folder_that_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with closing(SessionStore(tmp_path / "file")) as store:
        store.save(NEW, ["1"], replacing=None)
        assert bodies(store, "a") == ["1"]
    assert "keeping them in memory" in caplog.text


def test_after_its_end_it_says_so(tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    store.close()
    with pytest.raises(SessionStoreError, match="cannot be read or written"):
        store.get("a")


# Writes sessions and says so, each after it has been written, until it is killed.
_WRITER = """
import json, sys
from pathlib import Path
from dataclasses import replace
from server.sessions.store import Session, SessionStore

store, first = SessionStore(Path(sys.argv[1])), int(sys.argv[2])
for number in range(first, first + 100_000):
    name = f"s{number}"
    session = store.save(Session(name, "m", "w"), [f"{number} 1", f"{number} 2"], replacing=None)
    session = store.save(session, [f"{number} 3"], replacing=session)
    store.fork(name, f"f{number}", 1)
    print(json.dumps(number), flush=True)
"""


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    rng = random.Random(0)
    written: list[int] = []
    for round_ in range(8):
        first = round_ * 100_000
        command = [sys.executable, "-c", _WRITER, str(tmp_path), str(first)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            written.append(json.loads(process.stdout.readline()))
            time.sleep(rng.random() / 10)  # a random moment
            process.send_signal(signal.SIGKILL)
            written += [json.loads(line) for line in process.stdout if line.endswith(b"\n")]
            process.wait(PATIENCE_S)
        with closing(SessionStore(tmp_path)) as store:
            for number in written:
                assert bodies(store, f"s{number}") == [f"{number} {part}" for part in (1, 2, 3)]
                assert bodies(store, f"f{number}") == [f"{number} 1"]
    assert len(written) >= 8
    with closing(SessionStore(tmp_path)) as store:
        for session in store.all():
            store.delete(session.id)
        assert num_stored(store) == 0
