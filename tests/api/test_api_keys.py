"""Keys: who may call where some are set, and what a client without one learns."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest

from server.app import create_app
from server.settings import Settings
from server.ui import FILES as PAGE_FILES
from server.wire.openapi import openapi_page
from tests.tools.running_server import TIMEOUT_S, RunningServer, running

KEYS = ("sesame-1", "sesame-2")
OPEN = {"/", "/api/version"}


@pytest.fixture(scope="module")
def locked(models: Path) -> Iterator[RunningServer]:
    with running(Settings(models=models, device="cpu", api_keys=KEYS)) as server:
        yield server


def routes() -> list[tuple[str, str]]:
    """Method and path of every route, with something for each name in braces."""
    page = openapi_page(create_app(Settings(device="cpu")))
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, operations in page["paths"].items()
        for method in operations
    ]


@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_but_two_needs_a_key(locked: RunningServer, method: str, path: str) -> None:
    response = locked.http.request(method, path)
    if path in OPEN:
        assert response.status_code == 200
        return
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="anser"'
    if method != "HEAD" and path.startswith("/api/"):
        assert response.json()["error"].startswith("unauthorized: ")


def test_the_page_for_people_needs_none(locked: RunningServer) -> None:
    """It has to be there before it can ask for one."""
    for path in PAGE_FILES:
        assert locked.http.get(path).status_code == 200
    assert locked.http.get("/ui/nothing").status_code == 401


def test_what_is_no_route_is_not_told_apart(locked: RunningServer) -> None:
    assert locked.http.get("/api/nothing").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sesame-1"},
        {"Authorization": "bearer  sesame-2"},
        {"X-Api-Key": "sesame-2"},
        {"X-Api-Key": "sesame-2", "Authorization": "Bearer wrong"},
    ],
)
def test_a_key_opens(locked: RunningServer, headers: dict[str, str]) -> None:
    assert locked.http.get("/api/tags", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sesame"},
        {"Authorization": "Bearer sesame-1,sesame-2"},
        {"Authorization": "Basic sesame-1"},
        {"Authorization": "sesame-1"},
        {"Authorization": "Bearer"},
        {"Authorization": b"Bearer sesame-\xff1".decode("latin-1")},
        {"X-Api-Key": ""},
    ],
)
def test_something_else_does_not(locked: RunningServer, headers: dict[str, str]) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert locked.http.get("/api/tags", headers=encoded).status_code == 401  # type: ignore[arg-type]


def test_a_preflight_needs_none_and_a_refusal_is_readable(locked: RunningServer) -> None:
    origin = {"Origin": "http://localhost:3000"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    preflight = locked.http.options("/api/chat", headers=origin | asked)
    assert preflight.status_code == 204
    assert "X-Api-Key" in preflight.headers["access-control-allow-headers"]
    refused = locked.http.get("/api/tags", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin["Origin"]


def test_ollamas_client_sends_a_key(locked: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with ollama.Client(host=locked.url) as client, pytest.raises(ollama.ResponseError) as caught:
        client.list()
    assert caught.value.status_code == 401
    monkeypatch.setenv("OLLAMA_API_KEY", KEYS[0])
    with ollama.Client(host=locked.url) as client:
        assert client.list().models


def test_keys_are_not_logged(locked: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("anser.requests")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.DEBUG):
            locked.http.get("/api/tags", headers={"Authorization": "Bearer sesame-1"})
            locked.http.get("/api/tags", headers={"X-Api-Key": "sesame-3"})
    finally:
        logger.removeHandler(caplog.handler)
    assert "sesame" not in caplog.text


def test_a_large_upload_without_a_key_is_not_read(locked: RunningServer) -> None:
    """The connection ends after the answer, however much was promised."""
    url = locked.http.base_url
    for path in ("/api/sessions/x/state", "/api/chat"):
        with socket.create_connection((url.host, url.port or 0), TIMEOUT_S) as sock:
            lines = (f"PUT {path} HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked")
            sock.sendall("\r\n".join((*lines, "", "")).encode())
            answer = b""
            while data := sock.recv(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 401 ")
