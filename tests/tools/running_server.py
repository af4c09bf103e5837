"""A real server on a free port, in a thread of the test's own process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from server.access.http_protocol import protocol_with_timeout
from server.app import create_app
from server.context import ServerContext
from server.settings import Settings
from server.store.demo_model import DEMO_FILE
from tests.tools.waiting import TIMEOUT_S, wait_until

__all__ = ["DEMO", "ENDLESS", "TIMEOUT_S", "RunningServer", "needs_demo", "running", "wait_until"]

DEMO = "rwkv7-demo"
ENDLESS = "endless"  # a tiny random model in the World format that never ends a reply by itself

needs_demo = pytest.mark.skipif(
    not DEMO_FILE.is_file(), reason="the demo model has not been trained in this checkout"
)


class RunningServer:
    """A server in a thread of this process. `context` may be read from tests, never changed."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        """On a free port where `port` is 0."""
        app = create_app(settings)
        config = uvicorn.Config(
            app, host=settings.host, port=port, log_level="warning", access_log=False, ws="none",
            http=protocol_with_timeout(settings.request_timeout_s), timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.context: ServerContext = app.state.context
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the server does not stop"
        self.http.close()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def answer(self, path: str, **body: Any) -> dict[str, Any]:
        """The only object of an answer that is not streamed."""
        response = self.post(path, stream=False, **body)
        assert response.status_code == 200, response.text
        value = response.json()
        assert isinstance(value, dict)
        return value

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """All objects of a streamed answer."""
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def unload_all(self) -> None:
        for model in (DEMO, ENDLESS):  # models of other names share the file of one of them
            self.post("/api/generate", model=model, keep_alive=0)
        wait_until(lambda: not self.context.manager.loaded())


@contextmanager
def running(settings: Settings, port: int = 0) -> Iterator[RunningServer]:
    server = RunningServer(settings, port)
    try:
        yield server
    finally:
        server.stop()
