"""Random turns, edits, forks and deletions, against clients that send whole histories."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.settings import Settings
from tests.tools.running_server import RunningServer, needs_demo, running
from tests.tools.session_client import Message, chat, stored, user

pytestmark = needs_demo

SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}
SAID = ("My name is Ada.", "What is my name?", "Hello!", "What is 4 + 5?", "My cat is Tom.")


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[RunningServer]:
    with running(Settings(models=models, device="cpu")) as server:
        yield server


class Model:
    """What the sessions should hold, and clients that send whole histories to find out."""

    def __init__(self, server: RunningServer, seed: int) -> None:
        self.rng = random.Random(seed)
        self.histories: dict[str, list[Message]] = {}
        self._server = server
        self._prefix = f"random-{seed}-"
        self._num_made = 0

    def new_name(self) -> str:
        self._num_made += 1
        return f"{self._prefix}{self._num_made}"

    def any(self) -> str:
        return self.rng.choice([*self.histories])

    def chat(self, session: str, history: list[Message], sent: list[Message]) -> None:
        """`history` is what the session is to hold before the reply."""
        options = {"seed": self.rng.randrange(5), "num_predict": 30}
        expected = chat(self._server, history, options=options)
        answer = chat(self._server, sent, session, options=options)
        assert answer["message"] == expected["message"]
        assert answer["prompt_eval_count"] == expected["prompt_eval_count"]
        self.histories[session] = [*history, expected["message"]]

    def step(self) -> None:
        said = user(self.rng.choice(SAID))
        kind = self.rng.choice(["new", "say", "say", "say", "edit", "fork", "fork at", "delete"])
        if kind == "new" or not self.histories:
            new = [SYSTEM, said] if self.rng.random() < 0.5 else [said]
            self.chat(self.new_name(), new, new)
            return
        session = self.any()
        history = self.histories[session]
        replies = [i for i, each in enumerate(history) if each["role"] == "assistant"]
        if kind == "say" or (kind == "edit" and not replies):
            self.chat(session, [*history, said], [said])
        elif kind == "edit":
            edited = [*history[: self.rng.choice(replies) + 1], said]
            self.chat(session, edited, edited)
        elif kind == "delete":
            del self.histories[session]
            assert self._server.http.delete(f"/api/sessions/{session}").status_code == 200
        else:
            at = self.rng.randrange(1, len(history) + 1) if kind == "fork at" else len(history)
            name = self.new_name()
            body = {"session": name} | ({"at": at} if kind == "fork at" else {})
            assert self._server.post(f"/api/sessions/{session}/fork", **body).status_code == 200
            self.histories[name] = history[:at]

    def check(self) -> None:
        listed = self._server.http.get("/api/sessions").json()["sessions"]
        ours = {each["session"] for each in listed if each["session"].startswith(self._prefix)}
        assert ours == {*self.histories}
        for session, history in self.histories.items():
            assert stored(self._server, session) == history


@pytest.mark.parametrize("seed", range(3))
def test_random_histories(server: RunningServer, seed: int) -> None:
    model = Model(server, seed)
    for _ in range(25):
        model.step()
    model.check()


def test_random_histories_at_once(server: RunningServer) -> None:
    models = [Model(server, seed) for seed in range(10, 13)]
    failures: list[BaseException] = []

    def play(model: Model) -> None:
        try:
            for _ in range(10):
                model.step()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=play, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for model in models:
        model.check()
