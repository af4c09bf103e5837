"""Chats of several users at once, in any order of events, against a server without a cache.

The server under test has room for a few states in memory and some more on disk, so that all of
them come and go; its model is unloaded now and then, and files are damaged. Every answer must be
the one of a server that reads every prompt from its first token, one request at a time.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.settings import Settings
from tests.tools.native import require_kernels
from tests.tools.running_server import (
    DEMO,
    TIMEOUT_S,
    RunningServer,
    needs_demo,
    running,
    wait_until,
)

pytestmark = needs_demo

NUM_USERS = 4
NUM_STEPS = 7  # of each user
# A state of the demo model takes 0.28 MB.
MEMORY_BUDGET = 1_200_000
DISK_BUDGET = 3_000_000

SYSTEMS = ("You are a helpful assistant.", "Answer briefly.")
SAID = (
    "My name is Ada.", "What is my name?", "Hello!", "What is 31 + 27?", "My cat is called Tom.",
    "What is 4 + 5?", "I live in Rome.", "Where do I live?", "What is 90 - 14?", "Thanks!",
)  # fmt: skip

_PAGE = 4096

Json = dict[str, Any]


@pytest.fixture(scope="module")
def reference(models: Path) -> Iterator[RunningServer]:
    """One request at a time, and not one state fits into the budget."""
    require_kernels()  # without them, texts may depend on the company
    settings = Settings(models=models, device="cpu", num_parallel=1, states_memory=1)
    with running(settings) as server:
        yield server


@dataclass
class User:
    """Plays random chats with a server, and notes what it was told."""

    server: RunningServer
    choices: random.Random
    messages: list[Json] = field(default_factory=list)
    heard: list[tuple[str, Json, Json]] = field(default_factory=list)  # path, body, answer

    def step(self) -> None:
        chances = (
            (self.begin, 1.0 if len(self.messages) > 14 else 0.1),
            (self.say, 4.0),
            (self.edit, 1.0),
            (self.branch, 0.7),
            (self.retry, 1.0),
            (self.go_away, 1.0),
            (self.ask_for_a_title, 0.7),
            (self.continue_a_context, 0.5),
            (self.damage_files, 0.5),
            (self.unload, 0.3),
        )
        actions = [action for action, _ in chances]
        self.choices.choices(actions, [weight for _, weight in chances])[0]()

    def begin(self) -> None:
        self.messages = [{"role": "system", "content": self.choices.choice(SYSTEMS)}]

    def say(self) -> None:
        self.messages.append({"role": "user", "content": self.choices.choice(SAID)})
        self.retry()

    def edit(self) -> None:
        """The last message, and a new answer to it."""
        self._back_to_the_user()
        if self.messages and self.messages[-1]["role"] == "user":
            del self.messages[-1]
        self.say()

    def branch(self) -> None:
        """Another way from somewhere in the middle."""
        del self.messages[self.choices.randrange(len(self.messages) + 1) :]
        self._back_to_the_user()
        self.say()

    def retry(self) -> None:
        """An answer to the last message of the user."""
        self._back_to_the_user()
        if not self.messages or self.messages[-1]["role"] != "user":
            return
        body = self._body(messages=list(self.messages))
        answer = self._hear("/api/chat", body)
        self.messages.append(answer["message"])

    def go_away(self) -> None:
        """In the middle of an answer; what there is of it stays in the chat."""
        self._back_to_the_user()
        self.messages.append({"role": "user", "content": self.choices.choice(SAID)})
        body = self._body(messages=list(self.messages), stream=True)
        content, last = "", self.choices.randrange(12)
        url = f"{self.server.url}/api/chat"
        with httpx.stream("POST", url, json=body, timeout=TIMEOUT_S) as response:
            for number, line in enumerate(response.iter_lines()):
                content += json.loads(line)["message"]["content"]
                if number == last:
                    break
        if content:
            self.messages.append({"role": "assistant", "content": content})

    def ask_for_a_title(self) -> None:
        """As chat pages do by themselves: a prompt that has nothing of the chat's beginning."""
        text = f"Make a title of: {self.choices.choice(SAID)}"
        self._hear("/api/chat", self._body(messages=[{"role": "user", "content": text}]))

    def continue_a_context(self) -> None:
        body = self._body(prompt=self.choices.choice(SAID))
        first = self._hear("/api/generate", body)
        again = self._body(prompt=self.choices.choice(SAID), context=first["context"])
        self._hear("/api/generate", again)

    def damage_files(self) -> None:
        """About half of them; then they are needed."""
        folder = self.server.context.settings.states
        assert folder is not None
        for path in folder.glob("snapshots/*.safetensors"):
            try:
                with path.open("r+b") as file:  # never one that has been evicted meanwhile
                    size = os.fstat(file.fileno()).st_size
                    kind = self.choices.randrange(4)
                    if kind == 0:
                        file.truncate(size // 2)
                    elif kind == 1:
                        file.seek(self.choices.randrange(size // 2, size - _PAGE))
                        file.write(self.choices.randbytes(_PAGE))
            except FileNotFoundError:
                pass
        self.unload()

    def unload(self) -> None:
        """What is in memory is gone with the model."""
        self.server.post("/api/generate", model=DEMO, keep_alive=0)

    def _back_to_the_user(self) -> None:
        while self.messages and self.messages[-1]["role"] == "assistant":
            del self.messages[-1]

    def _body(self, **parts: Any) -> Json:
        options = self.choices.choice(
            (
                {"temperature": 0},
                {"seed": self.choices.randrange(3), "temperature": 1.2},
                {"seed": 1, "repeat_penalty": 1.2, "stop": ["a", " is"]},
            )
        )
        options = {**options, "num_predict": self.choices.choice((1, 12, 60))}
        think = self.choices.random() < 0.4
        body = {"model": DEMO, "options": options, "think": think, "stream": False}
        return body | parts

    def _hear(self, path: str, body: Json) -> Json:
        response = httpx.post(self.server.url + path, json=body, timeout=TIMEOUT_S)
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        self.heard.append((path, body, answer))
        return answer


def said(answer: Json) -> Json:
    """What depends on the request alone."""
    names = ("message", "response", "thinking", "context", "done_reason")
    counts = ("prompt_eval_count", "eval_count")
    return {name: answer[name] for name in (*names, *counts) if name in answer}


@pytest.mark.parametrize("seed", range(1))
def test_any_history_gives_the_answers_of_a_server_without_a_cache(
    reference: RunningServer, models: Path, tmp_path: Path, seed: int
) -> None:
    settings = Settings(
        models=models,
        device="cpu",
        num_parallel=NUM_USERS - 1,
        states=tmp_path / "states",
        states_memory=MEMORY_BUDGET,
        states_disk=DISK_BUDGET,
    )
    with running(settings) as server:
        users = [User(server, random.Random(100 * seed + number)) for number in range(NUM_USERS)]
        start = threading.Barrier(NUM_USERS)

        def play(user: User) -> None:
            start.wait(TIMEOUT_S)
            user.begin()
            for _ in range(NUM_STEPS):
                user.step()

        with ThreadPoolExecutor(NUM_USERS) as pool:
            for future in [pool.submit(play, user) for user in users]:
                future.result()
        loaded = server.context.manager.loaded()
        wait_until(lambda: all(each.engine.load.is_idle for each in loaded))
        assert_within_bounds(server)
    heard = [each for user in users for each in user.heard]
    assert len(heard) > NUM_USERS * NUM_STEPS // 2
    assert sum(answer["prompt_cached_count"] > 0 for _, _, answer in heard) > len(heard) // 3
    for path, body, answer in heard:
        alone = reference.post(path, **body).json()
        assert alone["prompt_cached_count"] == 0
        assert said(answer) == said(alone), body


def assert_within_bounds(server: RunningServer) -> None:
    """Nobody runs or waits, and no tier holds more than it may."""
    for loaded in server.context.manager.loaded():
        assert loaded.engine.load.num_running == loaded.engine.load.num_waiting == 0
        assert loaded.cache.statistics().num_bytes <= MEMORY_BUDGET
    disk = server.context.manager.disk_tier
    assert disk is not None
    assert disk.flush(TIMEOUT_S)
    statistics = disk.statistics()
    assert 0 < statistics.num_bytes <= DISK_BUDGET
    assert statistics.num_evicted > 0
