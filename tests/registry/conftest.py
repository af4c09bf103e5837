"""A registry with the demo model in it, and a store to pull it into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.store.demo_model import ensure_demo_model
from server.store.store import Store
from tests.tools.registry import DEMO_PATH, Conduct, Registry, registry_running


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("source"))
    assert ensure_demo_model(store)
    return store


@pytest.fixture(scope="session")
def started() -> Iterator[tuple[Registry, Registry]]:
    with registry_running() as registry, registry_running() as storage:
        yield registry, storage


@pytest.fixture
def registry(started: tuple[Registry, Registry], source: Store) -> Registry:
    """One with the demo model, as it should be."""
    for each in started:
        each.conduct.go.set()
        each.conduct = Conduct()
        each.seen.clear()
        each.blobs.clear()
        each.manifests.clear()
        each.num_sent = 0
        each.add_model(source, "rwkv7-demo", DEMO_PATH)
    return started[0]


@pytest.fixture
def storage(started: tuple[Registry, Registry], registry: Registry) -> Registry:
    """Where the registry keeps its blobs, on another port."""
    registry.conduct.storage = started[1].url
    return started[1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")
