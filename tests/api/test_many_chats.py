"""A thousand chats come and go: what they leave in the server has bounds."""

from __future__ import annotations

import gc
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rwkv_core.bench.machine import resident_bytes
from rwkv_core.cache.disk_folder import FILES_NAME
from server.settings import Settings
from tests.tools.running_server import ENDLESS, TIMEOUT_S, RunningServer, running, wait_until
from tests.tools.session_client import Message, user

NUM_CHATS = 400
NUM_CLIENTS = 4
MB = 1 << 20
# By default they are shares of what is free, which a thousand chats of a tiny model do not fill.
MEMORY_BUDGET, DISK_BUDGET = 3 * MB, 6 * MB
# What the allocator may keep, with its client in the same process.
SLACK_BYTES = 12 * MB

OPTIONS = {"num_predict": 3, "temperature": 0}


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is slow where a disk is busy."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[RunningServer]:
    settings = Settings(
        models=models,
        device="cpu",
        states=tmp_path,
        states_memory=MEMORY_BUDGET,
        states_disk=DISK_BUDGET,
    )
    with running(settings) as server:
        yield server


class Chats:
    """Chats of one or two turns, some named, some left by their client, some deleted."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.largest_bytes = 0  # that the states in memory ever had

    def play(self, numbers: range) -> None:
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            list(pool.map(self._play, numbers))
        wait_until(lambda: self._model().engine.load.is_idle)

    def _play(self, number: int) -> None:
        rng = random.Random(number)
        messages = [user(f"{number} {rng.random()}" * rng.randrange(1, 8))]
        session = f"chat-{number}" if number % 20 == 0 else ""
        if number % 20 == 7:
            self._leave(messages)
        reply = self._say(messages, session)
        if number % 4 == 1:
            self._say([*messages, reply, user(f"and {number}")], "")
        if session:
            assert self._server.http.delete(f"/api/sessions/{session}").status_code == 200
        self.largest_bytes = max(self.largest_bytes, self._model().cache.statistics().num_bytes)

    def _say(self, messages: list[Message], session: str) -> Message:
        body: dict[str, Any] = {"model": ENDLESS, "options": OPTIONS, "session": session}
        message: Message = self._server.answer("/api/chat", messages=messages, **body)["message"]
        return message

    def _leave(self, messages: list[Message]) -> None:
        body = {"model": ENDLESS, "messages": messages}
        with self._server.http.stream("POST", "/api/chat", json=body) as response:
            assert not json.loads(next(response.iter_lines()))["done"]

    def _model(self) -> Any:
        (model,) = self._server.context.manager.loaded()
        return model


def num_objects() -> Counter[str]:
    """Of our own classes, those that are alive."""
    gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    ours = ("rwkv_core.", "server.")
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith(ours))


def test_hundreds_of_chats_leave_nothing_that_grows(server: RunningServer, tmp_path: Path) -> None:
    chats = Chats(server)
    chats.play(range(NUM_CHATS // 4))
    before, objects_before = resident_bytes(), num_objects()
    chats.play(range(NUM_CHATS // 4, NUM_CHATS))
    after, objects_after = resident_bytes(), num_objects()

    (model,) = server.context.manager.loaded()
    disk = server.context.manager.disk_tier
    assert disk is not None
    assert disk.flush(TIMEOUT_S)
    # The budgets were full, and held.
    assert 0.8 * MEMORY_BUDGET < chats.largest_bytes <= MEMORY_BUDGET
    assert model.cache.statistics().num_evicted > NUM_CHATS // 2
    sizes = [each.stat().st_size for each in (tmp_path / FILES_NAME).iterdir()]
    assert 0.5 * DISK_BUDGET < sum(sizes) <= DISK_BUDGET
    assert disk.statistics().num_queued_bytes == 0
    # Nothing is left of who came and went.
    assert model.engine.load.num_running == model.engine.load.num_waiting == 0
    assert model.engine.load.num_ahead == 0
    assert not server.context.sessions._queues
    assert server.http.get("/api/sessions").json() == {"sessions": []}
    assert sum(text.num_bytes for text in model.encoder._texts) < 2 * MB
    grown = {
        kind: count - objects_before[kind]
        for kind, count in objects_after.items()
        if count - objects_before[kind] > 100
    }
    assert grown == {}
    if before is not None and after is not None:
        assert after - before < SLACK_BYTES


def test_metrics_have_as_many_lines_after_many_chats(server: RunningServer) -> None:
    chats = Chats(server)
    chats.play(range(20))
    server.http.get("/metrics")  # a route of its own
    before = len(server.http.get("/metrics").text.splitlines())
    chats.play(range(20, 60))
    assert len(server.http.get("/metrics").text.splitlines()) == before
