"""A chat goes on after its server has been stopped or killed."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.tools.anser_command import PATIENCE_S, Anser
from tests.tools.running_server import DEMO, needs_demo

pytestmark = needs_demo


@contextmanager
def serving(anser: Anser) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    process = anser.start("serve")
    try:
        assert process.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert match is not None
        with httpx.Client(base_url=match[0], timeout=PATIENCE_S) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def say(client: httpx.Client, messages: list[dict[str, str]], text: str) -> dict[str, Any]:
    """Asks in a chat, which grows by the question and the answer."""
    messages.append({"role": "user", "content": text})
    options = {"seed": 5, "num_predict": 200}
    body = {"model": DEMO, "messages": messages, "stream": False, "options": options}
    answer = client.post("/api/chat", json=body)
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    messages.append({"role": "assistant", "content": value["message"]["content"]})
    return value


def wait_for_writes(folder: Path) -> None:
    """Until nothing has been written for a while."""
    deadline = time.monotonic() + PATIENCE_S
    before: list[tuple[str, int]] = []
    while True:
        time.sleep(1)
        after = sorted((str(each), each.stat().st_size) for each in folder.rglob("*"))
        if after and after == before:
            return
        assert time.monotonic() < deadline
        before = after


def num_read(answer: dict[str, Any]) -> int:
    return int(answer["prompt_eval_count"]) - int(answer["prompt_cached_count"])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_session_goes_on_after_a_restart(tmp_path: Path, end: signal.Signals) -> None:
    anser = Anser(tmp_path, tmp_path / "models", "127.0.0.1:0")

    def ask(client: httpx.Client, *messages: dict[str, str], **named: str) -> dict[str, Any]:
        options = {"seed": 5, "num_predict": 200}
        body = {"model": DEMO, "stream": False, "options": options, "think": False, **named}
        answer = client.post("/api/chat", json={**body, "messages": messages})
        assert answer.status_code == 200, answer.text
        message: dict[str, Any] = answer.json()["message"]
        return message

    def user(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    with serving(anser) as (process, client):
        ask(client, user("My name is Ada."), session="tea")
        ask(client, user("What is 4 + 5?"), session="tea")
        client.post("/api/sessions/tea/fork", json={"session": "coffee"})
        # At once: a turn that was answered is on disk.
        process.send_signal(end)
        process.wait(PATIENCE_S)
    with serving(anser) as (_, client):
        listed = client.get("/api/sessions").json()["sessions"]
        counts = {each["session"]: each["message_count"] for each in listed}
        assert counts == {"tea": 4, "coffee": 4}
        history = client.get("/api/sessions/tea").json()["messages"]
        question = user("What is my name?")
        expected = ask(client, *history, question)
        assert "Ada" in expected["content"]
        for session in counts:
            assert ask(client, question, session=session) == expected


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_chat_goes_on_after_a_restart(tmp_path: Path, end: signal.Signals) -> None:
    anser = Anser(tmp_path, tmp_path / "models", "127.0.0.1:0")
    messages: list[dict[str, str]] = [{"role": "system", "content": "You are helpful."}]
    with serving(anser) as (process, client):
        say(client, messages, "My name is Ada.")
        last = say(client, messages, "What is 4 + 5?")
        if end is signal.SIGKILL:
            wait_for_writes(tmp_path / ".anser" / "states")
        process.send_signal(end)
        process.wait(PATIENCE_S)
    with serving(anser) as (_, client):
        # The last question again: nothing is read, and the seed gives the same answer.
        again = say(client, messages[:-2], "What is 4 + 5?")
        assert num_read(again) == 0
        assert again["message"] == last["message"]
        # And the next one: its own words; after a kill -9 that left no time, the last turn's too.
        assert num_read(say(client, messages, "Hello!")) < 20
