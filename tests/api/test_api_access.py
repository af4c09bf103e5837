"""Which hosts and origins may call."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.app import create_app
from server.settings import Settings
from server.wire.openapi import openapi_page
from tests.tools.running_server import RunningServer, running, wait_until


@pytest.fixture(scope="module")
def strict(models: Path) -> Iterator[RunningServer]:
    settings = Settings(models=models, device="cpu", origins=("https://*.example.com", "null"))
    with running(settings) as server:
        yield server


def get(server: RunningServer, path: str = "/api/version", **headers: str) -> httpx.Response:
    return server.http.get(path, headers=headers)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:11434", "127.0.0.1", "127.8.9.1:5", "[::1]:80", "0.0.0.0", "10.1.2.3",
     "192.168.1.9:11434", "172.31.0.1", "[fd00::1]", "my.local", "gateway.docker.internal",
     "a.localhost:1", socket.gethostname()],
)  # fmt: skip
def test_own_hosts_are_let_in(server: RunningServer, host: str) -> None:
    assert get(server, Host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["example.com", "evil.com:11434", "localhost.evil.com", "8.8.8.8", "172.32.0.1", "xlocal"],
)
def test_other_hosts_are_kept_out(server: RunningServer, host: str) -> None:
    response = get(server, Host=host)
    assert (response.status_code, response.content) == (403, b"")
    response = server.http.post("/api/generate", json={"model": "x"}, headers={"Host": host})
    assert (response.status_code, response.content) == (403, b"")


def test_options_without_an_origin(server: RunningServer) -> None:
    assert server.http.options("/api/chat", headers={"Host": "localhost"}).status_code == 204
    assert server.http.options("/api/chat", headers={"Host": "127.0.0.1"}).status_code == 405
    assert server.http.options("/api/chat", headers={"Host": "example.com"}).status_code == 403


def test_a_server_for_everyone_takes_any_host(models: Path) -> None:
    with running(Settings(host="0.0.0.0", models=models, device="cpu")) as server:
        assert get(server, Host="example.com").status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://localhost", "https://localhost:3000", "http://127.0.0.1:8080", "http://0.0.0.0",
     "app://obsidian.md", "file://", "tauri://localhost", "vscode-webview://abc",
     "chrome-extension://abc", "moz-extension://abc"],
)  # fmt: skip
def test_local_origins_may_call(server: RunningServer, origin: str) -> None:
    response = get(server, Origin=origin)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert "origin" in response.headers["vary"].lower()
    preflight = server.http.options(
        "/api/chat", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "Content-Type" in preflight.headers["access-control-allow-headers"]


@pytest.mark.parametrize(
    "origin", ["https://evil.com", "http://localhost.evil.com", "null", "https://evil.com:3000"]
)
def test_other_origins_may_not(server: RunningServer, origin: str) -> None:
    for method in ("GET", "OPTIONS", "POST"):
        response = server.http.request(method, "/api/tags", headers={"Origin": origin})
        assert (response.status_code, response.content) == (403, b"")
        assert "access-control-allow-origin" not in response.headers


def test_origins_of_the_user(strict: RunningServer) -> None:
    assert get(strict, Origin="https://a.example.com").status_code == 200
    assert get(strict, Origin="null").status_code == 200
    assert get(strict, Origin="http://localhost:3000").status_code == 200
    assert get(strict, Origin="https://example.org").status_code == 403


def test_every_origin_when_the_user_says_so(models: Path) -> None:
    with running(Settings(models=models, device="cpu", origins=("*",))) as server:
        response = get(server, Origin="https://anything.example")
        assert response.headers["access-control-allow-origin"] == "*"


def test_the_log_has_a_line_for_what_is_worth_one(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("anser.requests")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger.name):
            get(server)  # clients do this every few seconds
            server.http.get("/no%0Asuch?secret=1")
            server.post("/api/show", model="none")
            # A line follows the last byte of its response.
            wait_until(lambda: len({record.getMessage() for record in caplog.records}) >= 2)
    finally:
        logger.removeHandler(caplog.handler)
    lines = {record.getMessage() for record in caplog.records}
    assert len(lines) == 2
    assert any(line.startswith("404 | ") and '"/no\\nsuch"' in line for line in lines)
    assert any('POST    "/api/show"' in line for line in lines)


def test_errors_carry_the_origin_too(server: RunningServer) -> None:
    response = server.http.post(
        "/api/chat", json={"model": "none"}, headers={"Origin": "http://localhost:3000"}
    )
    assert response.status_code == 404
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"


def routes_that_change_something() -> list[tuple[str, str]]:
    page = openapi_page(create_app(Settings(device="cpu")))
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, operations in page["paths"].items()
        for method in operations
        if method not in ("get", "head")
    ]


@pytest.mark.parametrize(("method", "path"), routes_that_change_something())
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_no_page_changes_anything_without_a_preflight(
    server: RunningServer, method: str, path: str, content_type: str
) -> None:
    """What browsers send without asking first has an Origin, and that is enough to refuse it."""
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example:11434"):
        headers = {"Origin": origin, "Content-Type": content_type}
        response = server.http.request(method, path, content=b'{"model": "x"}', headers=headers)
        assert (response.status_code, response.content) == (403, b"")
    own = {"Origin": server.url, "Content-Type": content_type}
    response = server.http.request(method, path, content=b'{"model": "x"}', headers=own)
    assert response.status_code != 403


def test_a_page_that_gave_its_own_name_this_address(server: RunningServer) -> None:
    """Its requests are of one origin to the browser: only the name gives them away."""
    headers = {"Host": "evil.example:11434", "Origin": "http://evil.example:11434"}
    response = server.http.post("/api/generate", json={"model": "x"}, headers=headers)
    assert (response.status_code, response.content) == (403, b"")
