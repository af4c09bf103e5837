"""Several models in a server: how many are in memory, who goes, who waits, and what they share."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rwkv_core import loading
from rwkv_core.cache import MemoryTier
from server.creating.create import create_model
from server.creating.modelfile import parse_modelfile
from server.loading import model_loading
from server.settings import Settings
from server.store.manifests import MODEL_TYPE
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import ModelParts, write_model
from tests.tools.running_server import TIMEOUT_S, RunningServer, running, wait_until
from tests.tools.server_models import SMALL, write_endless_gguf
from tests.tools.time_states import time_state, write_time_state

NAMES = ("one", "two", "three", "four")
BUSY = "server busy, please try again.  maximum pending requests exceeded"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four endless models of different weights, and two of the first's with initial states."""
    folder = tmp_path_factory.mktemp("several")
    store = Store(folder / "models")
    for seed, name in enumerate(NAMES):
        write_endless_gguf(folder / "model.gguf", seed=seed)
        blob = store.add_blob(folder / "model.gguf")
        write_model(store, ModelName.parse(name), blob, ModelParts())
    for seed in (1, 2):
        file = write_time_state(folder / f"{seed}.pth", time_state(SMALL, seed))
        modelfile = parse_modelfile(f"FROM one\nADAPTER {file}\n")
        create_model(store, ModelName.parse(f"tuned{seed}"), modelfile, Path(), lambda *_: None)
    return store


@contextmanager
def served(store: Store, **settings: Any) -> Iterator[RunningServer]:
    with running(Settings(models=store.root, device="cpu", **settings)) as server:
        yield server


def say(server: RunningServer, model: str, **options: Any) -> httpx.Response:
    options = {"num_predict": 3, "seed": 1, **options}
    return server.post(
        "/api/generate", model=model, prompt="Hello", raw=True, stream=False, options=options
    )


def in_memory(server: RunningServer) -> set[str]:
    models = server.http.get("/api/ps").json()["models"]
    return {model["name"].removesuffix(":latest") for model in models}


@contextmanager
def streaming(server: RunningServer, model: str) -> Iterator[Iterator[str]]:
    """A reply that goes on until the block ends."""
    body = {"model": model, "prompt": "Hello", "raw": True}
    with server.http.stream("POST", "/api/generate", json=body, timeout=TIMEOUT_S) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines))["response"]
        yield lines


def num_waiting(server: RunningServer) -> int:
    return server.context.manager.num_waiting


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_the_least_recently_used_goes_first(store: Store) -> None:
    with served(store, max_loaded_models=2) as server:
        for model in ("one", "two", "one", "three"):
            assert say(server, model).status_code == 200
        assert in_memory(server) == {"one", "three"}


def test_three_fit_unless_somebody_says_otherwise(store: Store) -> None:
    with served(store) as server:
        for model in NAMES:
            assert say(server, model).status_code == 200
        assert in_memory(server) == set(NAMES[1:])


def test_a_model_in_use_stays_and_who_wants_another_waits(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    with served(store, max_loaded_models=1) as server:
        expected = [say(server, model).json()["response"] for model in ("two", "one")]
        with streaming(server, "one") as lines:
            answer = pool.submit(say, server, "two")
            wait_until(lambda: num_waiting(server) == 1)
            late = pool.submit(say, server, "one")  # behind it, so that "two" has its turn
            wait_until(lambda: num_waiting(server) == 2)
            for _ in range(20):
                assert "error" not in json.loads(next(lines))
            assert in_memory(server) == {"one"}
            assert not answer.done()
        assert [answer.result().json()["response"], late.result().json()["response"]] == expected


def test_who_goes_away_while_waiting_leaves_nothing(store: Store) -> None:
    with served(store, max_loaded_models=1) as server, streaming(server, "one") as lines:
        body = {"model": "two", "prompt": "Hello"}
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                server.http.post("/api/generate", json=body, timeout=0.2)
        wait_until(lambda: num_waiting(server) == 0)
        assert "error" not in json.loads(next(lines))
        assert say(server, "one").status_code == 200  # it is not to go any more
        assert in_memory(server) == {"one"}


def test_too_many_who_wait_are_refused(store: Store, pool: ThreadPoolExecutor) -> None:
    with served(store, max_loaded_models=1, max_queue=2) as server:
        answers: list[Future[httpx.Response]] = []
        with streaming(server, "one"):
            for index, model in enumerate(("two", "three")):
                answers.append(pool.submit(say, server, model))
                wait_until(lambda count=index + 1: num_waiting(server) == count)  # type: ignore[misc]
            refused = say(server, "four")
            assert (refused.status_code, refused.json()) == (503, {"error": BUSY})
        assert [answer.result().status_code for answer in answers] == [200, 200]


def test_many_requests_for_many_models_are_all_answered(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    with served(store, max_loaded_models=2) as server:
        models = [*NAMES, "tuned1", "tuned2"]
        alone = {model: say(server, model).json()["response"] for model in models}
        assert len(set(alone.values())) == len(models)
        wanted = models * 4
        answers = list(pool.map(lambda model: say(server, model).json()["response"], wanted))
        assert answers == [alone[model] for model in wanted]
        assert len(in_memory(server)) == 2


def test_unloading_and_waiting(store: Store, pool: ThreadPoolExecutor) -> None:
    with served(store, max_loaded_models=1) as server:
        with streaming(server, "one"):
            answer = pool.submit(say, server, "two")
            wait_until(lambda: num_waiting(server) == 1)
            assert server.post("/api/generate", model="one", keep_alive=0).status_code == 200
            assert not answer.done()
        assert answer.result().status_code == 200
        assert in_memory(server) == {"two"}


class Machine:
    """A machine in which weights take so much of so little memory, for `available_bytes`."""

    def __init__(self, server: RunningServer, total: int) -> None:
        self._server = server
        self.total = total

    def available(self) -> int:
        loaded = self._server.context.manager.loaded()
        executors = {each.model.executor for each in loaded}
        return self.total - sum(each.num_weight_bytes for each in executors)


@pytest.fixture
def weight_bytes(store: Store) -> int:
    manifest = store.read_manifest(ModelName.parse("one"))
    assert manifest is not None
    layer = manifest.layer(MODEL_TYPE)
    assert layer is not None
    with served(store) as server:
        say(server, "one")
        return server.context.manager.loaded()[0].num_bytes


def test_a_load_takes_the_memory_of_idle_models(
    store: Store, weight_bytes: int, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    monkeypatch.setattr(loading, "_WORKING_BYTES", 0)
    with served(store) as server:
        machine = Machine(server, total=int(2.5 * weight_bytes))
        monkeypatch.setattr(loading, "available_bytes", machine.available)
        for model in ("one", "two", "one", "three"):
            assert say(server, model).status_code == 200
        assert in_memory(server) == {"one", "three"}
        with streaming(server, "one"), streaming(server, "three"):
            answer = pool.submit(say, server, "two")
            wait_until(lambda: num_waiting(server) == 1)
            assert in_memory(server) == {"one", "three"}
        assert answer.result().status_code == 200
        machine.total = weight_bytes // 2  # nothing that anybody could give up would help
        before = in_memory(server)
        refused = say(server, "four")
        assert refused.status_code == 500
        assert "unable to load model four:latest: needs" in refused.json()["error"]
        assert in_memory(server) == before


def test_names_of_the_same_weights_share_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    load_model = loading.load_model

    def counted(path: Path, **options: Any) -> Any:
        loads.append(path)
        return load_model(path, **options)

    monkeypatch.setattr(model_loading, "load_model", counted)
    with served(store) as server:
        texts = {name: say(server, name).json()["response"] for name in ("tuned1", "one", "tuned2")}
        assert len(set(texts.values())) == 3
        assert len(loads) == 1
        executors = {id(each.model.executor) for each in server.context.manager.loaded()}
        assert len(executors) == 1
        # What one of them leaves, the others keep.
        server.post("/api/generate", model="tuned1", keep_alive=0)
        wait_until(lambda: in_memory(server) == {"one", "tuned2"})
        assert say(server, "tuned2").json()["response"] == texts["tuned2"]
        assert say(server, "tuned1").json()["response"] == texts["tuned1"]
        assert len(loads) == 1
        executor = weakref.ref(server.context.manager.loaded()[0].model.executor)
        gc.disable()
        try:
            for name in texts:
                server.post("/api/generate", model=name, keep_alive=0)
            wait_until(lambda: executor() is None)
        finally:
            gc.enable()


def test_all_states_in_memory_have_one_budget(store: Store, tmp_path: Path) -> None:
    budget = 1_000_000
    with served(store, states_memory=budget, states=tmp_path / "states") as server:
        for turn in range(8):
            for model in NAMES[:3]:
                text = f"{turn} " * 40
                server.answer("/api/generate", model=model, prompt=text, options={"num_predict": 2})
        statistics = [each.cache.statistics() for each in server.context.manager.loaded()]
        assert len(statistics) == 3
        assert all(each.budget == budget for each in statistics)
        assert budget // 2 < sum(each.num_bytes for each in statistics) <= budget
        assert sum(each.num_evicted for each in statistics) > 0
        for model in NAMES[:3]:
            server.post("/api/generate", model=model, keep_alive=0)
        wait_until(lambda: not server.context.manager.loaded())
        memory = states_in_memory(server)
        wait_until(lambda: memory.num_bytes == 0)


def test_the_budget_follows_the_memory_that_is_free(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 8 << 30
    available: Callable[[], int] = lambda: free  # noqa: E731
    monkeypatch.setattr(model_loading, "available_bytes", available)
    monkeypatch.setattr("rwkv_core.cache.defaults.available_bytes", available)
    with served(store) as server:
        say(server, "one")
        memory = states_in_memory(server)
        assert memory.budget == free // 10
        free = 4 << 30
        say(server, "two")
        # What the snapshots take by then is theirs; with these models it is next to nothing.
        assert free // 10 <= memory.budget < free // 10 + 1_000_000
        free = 6 << 30
        server.post("/api/generate", model="two", keep_alive=0)
        wait_until(lambda: memory.budget >= free // 10)


def states_in_memory(server: RunningServer) -> MemoryTier:
    memory = server.context.manager._loader._memory
    assert memory is not None
    return memory
