"""A server with the demo model for the clients that people really use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.settings import Settings
from tests.tools.running_server import RunningServer, running

API_KEY = "for the tests".replace(" ", "-")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    models = tmp_path_factory.mktemp("models")
    with running(Settings(models=models, device="cpu", api_keys=(API_KEY,))) as server:
        yield server
