"""A server for all tests of the API, with a store of its own and real models in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest

from server.settings import Settings
from server.store.demo_model import DEMO_FILE, DEMO_NAME
from server.store.store import Store
from server.store.stored_model import ModelParts, open_model, write_model
from tests.tools.running_server import DEMO, ENDLESS, TIMEOUT_S, RunningServer, running
from tests.tools.server_models import add_endless_model, write_endless_gguf


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with both models. Tests may add models of their own names."""
    folder = tmp_path_factory.mktemp("models")
    work = tmp_path_factory.mktemp("work")
    store = Store(folder)
    add_endless_model(store, ENDLESS, work)
    if not DEMO_FILE.is_file():  # then the server cannot put it there: a stand-in that thinks
        write_endless_gguf(work / "demo.gguf", name=DEMO)
        write_model(store, DEMO_NAME, store.add_blob(work / "demo.gguf"), ModelParts())
    assert open_model(store, DEMO_NAME) or DEMO_FILE.is_file()
    return folder


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[RunningServer]:
    with running(Settings(models=models, device="cpu")) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[ollama.Client]:
    """The official Python client."""
    with ollama.Client(host=server.url, timeout=TIMEOUT_S) as client:
        yield client
