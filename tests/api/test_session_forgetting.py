"""A session that is deleted takes its states along: those that are nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors

from rwkv_core.cache.disk_folder import FILES_NAME
from server.settings import Settings
from tests.tools.running_server import (
    DEMO,
    ENDLESS,
    TIMEOUT_S,
    RunningServer,
    needs_demo,
    running,
    wait_until,
)
from tests.tools.session_client import Message, chat, num_read, stored, user

pytestmark = needs_demo

SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}
# More than a prompt has around a user's few words.
A_FEW_WORDS = 30


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[RunningServer]:
    with running(Settings(models=models, device="cpu", states=tmp_path)) as server:
        yield server


def settle(server: RunningServer) -> None:
    """Until all states of the turns that are over are there, and on disk."""

    def is_settled() -> bool:
        busy = any(not each.engine.load.is_idle for each in server.context.manager.loaded())
        disk = server.context.manager.disk_tier
        return not busy and disk is not None and disk.flush(TIMEOUT_S)

    wait_until(is_settled)


def num_read_ahead(server: RunningServer) -> int:
    return sum(each.engine.load.num_read_ahead for each in server.context.manager.loaded())


def say(server: RunningServer, session: str, *messages: Message, **body: Any) -> None:
    """A turn, with what the server does after it."""
    before = num_read_ahead(server)
    chat(server, list(messages), session, **body)
    wait_until(lambda: num_read_ahead(server) > before)
    settle(server)


def texts(folder: Path, server: RunningServer) -> list[str]:
    """What the states on disk are behind."""
    tokenizer = server.context.manager.loaded()[0].model.tokenizer
    found = []
    for path in (folder / FILES_NAME).glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            tokens = [each for each in file.get_tensor("tokens").tolist() if each >= 0]
        found.append(b"".join(map(tokenizer.token_bytes, tokens)).decode(errors="replace"))
    return found


def delete(server: RunningServer, session: str) -> None:
    settle(server)
    assert server.http.delete(f"/api/sessions/{session}").status_code == 200


@pytest.mark.parametrize("think", [False, True])
def test_nothing_of_what_was_said_stays(server: RunningServer, tmp_path: Path, think: bool) -> None:
    say(server, "secret", SYSTEM, user("My name is Zoe."), think=think)
    say(server, "secret", user("My cat is Tom."), think=think)
    say(server, "other", SYSTEM, user("What is 4 + 5?"))
    before = texts(tmp_path, server)
    assert any("Zoe" in text for text in before)
    assert any("Tom" in text for text in before)
    delete(server, "secret")
    after = texts(tmp_path, server)
    assert not any("Zoe" in text or "Tom" in text for text in after)
    assert sorted(after) == sorted(text for text in before if "Zoe" not in text)
    # Nor in memory: the whole chat is read again, but for what everybody's begins with.
    fresh = chat(server, [SYSTEM, user("My name is Zoe."), user("x")], think=think)
    assert 0 < fresh["prompt_cached_count"] < num_read(fresh)
    assert num_read(chat(server, [user("Hello!")], "other")) < A_FEW_WORDS


def test_a_fork_keeps_what_it_shares(server: RunningServer, tmp_path: Path) -> None:
    say(server, "trunk", user("My name is Zoe."))
    server.post("/api/sessions/trunk/fork", session="fork")
    say(server, "trunk", user("My cat is Tom."))
    say(server, "trunk", user("What is my name?"))
    delete(server, "trunk")
    after = texts(tmp_path, server)
    assert any("Zoe" in text for text in after)
    assert not any("Tom" in text for text in after)
    assert num_read(chat(server, [user("Hello!")], "fork")) < A_FEW_WORDS
    delete(server, "fork")
    assert not any("Zoe" in text for text in texts(tmp_path, server))


def test_a_scope_of_its_own_goes_with_its_last_session(
    server: RunningServer, tmp_path: Path
) -> None:
    say(server, "here", user("My name is Zoe."))
    data = server.http.get("/api/sessions/here/state").content
    assert server.http.put("/api/sessions/there/state", content=data).status_code == 201
    server.post("/api/sessions/there/fork", session="fork")
    say(server, "there", user("My cat is Tom."))
    delete(server, "here")
    of_both = texts(tmp_path, server)
    assert any("Tom" in text for text in of_both)
    delete(server, "there")
    after = texts(tmp_path, server)
    assert any("Zoe" in text for text in after)
    assert not any("Tom" in text for text in after)
    assert num_read(chat(server, [user("Hello!")], "fork")) < A_FEW_WORDS
    delete(server, "fork")
    assert texts(tmp_path, server) == []


@pytest.mark.parametrize("is_restarted", [False, True])
def test_without_its_model_in_memory(models: Path, tmp_path: Path, is_restarted: bool) -> None:
    settings = Settings(models=models, device="cpu", states=tmp_path)
    with running(settings) as server:
        say(server, "secret", user("My name is Zoe."))
        say(server, "other", user("My cat is Tom."))
        if not is_restarted:
            server.unload_all()
            assert server.http.delete("/api/sessions/secret").status_code == 200
    with running(settings) as server:
        if is_restarted:
            assert server.http.delete("/api/sessions/secret").status_code == 200
        assert not server.context.manager.loaded()
        assert num_read(chat(server, [user("Hello!")], "other")) < A_FEW_WORDS
        after = texts(tmp_path, server)
        assert not any("Zoe" in text for text in after)
        assert any("Tom" in text for text in after)


def test_words_that_every_chat_begins_with_delete_nothing(
    server: RunningServer, tmp_path: Path
) -> None:
    short = {"num_predict": 2}
    say(server, "empty", user(""), model=ENDLESS, options=short)
    say(server, "system", SYSTEM, model=ENDLESS, options=short)
    say(server, "other", SYSTEM, user("Hello!"), model=ENDLESS, options=short)
    before = num_files(tmp_path)
    assert stored(server, "empty")[0]["content"] == ""
    delete(server, "empty")
    assert num_files(tmp_path) == before
    answer = chat(server, [user("x")], "other", model=ENDLESS, options=short)
    assert num_read(answer) < A_FEW_WORDS


def num_files(folder: Path) -> int:
    return len([*(folder / FILES_NAME).iterdir()])


def test_a_session_that_is_deleted_in_its_turn(server: RunningServer, tmp_path: Path) -> None:
    """What its reply, and the next prompt, would leave behind is not kept either."""
    say(server, "doomed", user("one two three"), model=ENDLESS, options={"num_predict": 3})
    body = {"model": ENDLESS, "messages": [user("x")], "session": "doomed"}
    options = {"num_predict": 300}
    with server.http.stream("POST", "/api/chat", json={**body, "options": options}) as response:
        lines = response.iter_lines()
        next(lines)
        assert server.http.delete("/api/sessions/doomed").status_code == 200
        assert "error" in [*lines][-1]
    settle(server)
    assert texts(tmp_path, server) == []


def test_a_model_that_has_gone(
    server: RunningServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    say(server, "orphan", user("My name is Zoe."))
    store = server.context.sessions._store
    assert store is not None
    with store._using() as connection:
        connection.execute("UPDATE sessions SET model = 'gone:latest'")
    delete(server, "orphan")
    assert "the states of session orphan stay until they are evicted" in caplog.text
    assert server.http.get("/api/sessions/orphan").status_code == 404
    assert chat(server, [user("Hello!")], model=DEMO)["done"]
