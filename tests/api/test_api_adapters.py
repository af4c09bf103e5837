"""Names with tuned initial states: each begins at its own, on the same weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from rwkv_core import load_model
from rwkv_core.demo.evaluate import EMBEDDED
from server.creating.create import create_model
from server.creating.modelfile import parse_modelfile
from server.settings import Settings
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import open_model
from tests.tools.running_server import DEMO, RunningServer, needs_demo, running, wait_until
from tests.tools.time_states import state_behind, write_time_state

pytestmark = needs_demo

NAMES = ("Ada", "Bob")
QUESTION = "What is my name?"
TOLD = "User: My name is {name}.\n\nAssistant: Nice to meet you, {name}!\n\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the demo model, and a model of it for each name that it has been told."""
    folder = tmp_path_factory.mktemp("adapters")
    store = Store(folder / "models")
    model = load_model(EMBEDDED)
    for name in NAMES:
        file = folder / f"{name}.pth"
        write_time_state(file, state_behind(model, TOLD.format(name=name)))
        modelfile = parse_modelfile(f"FROM {DEMO}\nADAPTER {file}\nPARAMETER temperature 0\n")
        create_model(store, ModelName.parse(name), modelfile, Path(), lambda *_: None)
    plain = parse_modelfile(f"FROM {DEMO}\nPARAMETER temperature 0\n")
    create_model(store, ModelName.parse("plain"), plain, Path(), lambda *_: None)
    return folder


@contextmanager
def served(folder: Path, states: Path | None = None) -> Iterator[RunningServer]:
    with running(Settings(models=folder / "models", device="cpu", states=states)) as server:
        yield server


def ask(server: RunningServer, model: str, question: str = QUESTION) -> tuple[str, int]:
    """The reply, and how many tokens of the prompt came out of the cache."""
    messages = [{"role": "user", "content": question}]
    answer = server.answer("/api/chat", model=model, messages=messages, think=False)
    return answer["message"]["content"], answer["prompt_cached_count"]


def test_each_name_answers_from_its_own_state(folder: Path) -> None:
    with served(folder) as server:
        for name in NAMES:
            assert name in ask(server, name)[0]
        reply = ask(server, "plain")[0]
        assert not any(name in reply for name in NAMES)
        assert {each.stored.name.model for each in server.context.manager.loaded()} == {
            *NAMES,
            "plain",
        }


def test_the_cache_of_one_is_never_another_s(folder: Path, tmp_path: Path) -> None:
    states = tmp_path / "states"
    with served(folder, states) as server:
        cold = {name: ask(server, name) for name in (*NAMES, "plain")}
        assert all(cached == 0 for _, cached in cold.values())
        for name, (text, _) in cold.items():
            again, cached = ask(server, name)
            assert again == text
            assert cached > 0
    with served(folder, states) as server:  # what is on disk is told apart, too
        for name, (text, _) in cold.items():
            again, cached = ask(server, name)
            assert again == text
            assert cached > 0


def test_all_of_them_at_once(folder: Path) -> None:
    models = [*NAMES, "plain"] * 4
    random.Random(1).shuffle(models)
    with served(folder) as server:
        alone = {name: ask(server, name)[0] for name in (*NAMES, "plain")}
        with ThreadPoolExecutor(len(models)) as pool:
            answers = list(pool.map(lambda name: ask(server, name)[0], models))
    assert answers == [alone[name] for name in models]


def test_show_and_a_state_that_is_damaged(folder: Path) -> None:
    with served(folder) as server:
        store = server.context.store
        model = open_model(store, ModelName.parse("Ada"))
        assert model is not None
        assert model.adapter is not None
        shown = server.post("/api/show", model="Ada").json()
        assert f"\nADAPTER {model.adapter}\n" in shown["modelfile"]
        whole = model.adapter.read_bytes()
        try:
            model.adapter.write_bytes(whole[:-100])
            response = server.post("/api/chat", model="ada", messages=[])
            assert response.status_code == 500
            assert response.json()["error"].startswith(
                "unable to load model Ada:latest: its ADAPTER"
            )
        finally:
            model.adapter.write_bytes(whole)
        assert "Ada" in ask(server, "Ada")[0]
        server.post("/api/generate", model="Ada", keep_alive=0)
        wait_until(lambda: not server.context.manager.loaded())
