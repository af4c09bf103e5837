"""Streams of server-sent events: clients that leave, failures in the middle, a server's end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from torch import Tensor

from rwkv_core.executor import Segment
from rwkv_core.model import Model
from server.settings import Settings
from server.wire.streaming import to_json
from tests.tools.api_clients import anthropic_client, openai_client
from tests.tools.running_server import ENDLESS, TIMEOUT_S, RunningServer, running, wait_until

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]

# Many seconds of reading, even for the smallest model.
LONG_TEXT = "x" * 300_000

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]

FailIn = Callable[[int], None]


@pytest.fixture
def fail_in(monkeypatch: pytest.MonkeyPatch) -> FailIn:
    """Call it with a number of passes: the one after those fails."""
    num_left = -1
    advance_batch = Model.advance_batch

    def failing(model: Model, segments: Sequence[Segment], **options: Any) -> Tensor:
        nonlocal num_left
        num_left -= 1
        if num_left == -1:
            raise RuntimeError("the memory is on fire")
        return advance_batch(model, segments, **options)

    def fail_in(num_passes: int) -> None:
        nonlocal num_left
        num_left = num_passes

    monkeypatch.setattr(Model, "advance_batch", failing)
    return fail_in


@contextmanager
def endless_stream(server: RunningServer, path: str) -> Iterator[Iterator[str]]:
    with server.http.stream("POST", path, json=asking(path)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield response.iter_lines()


def asking(path: str, text: str = "Hello!", *, stream: bool = True) -> dict[str, Any]:
    """A request to one of the APIs that stream events; only its client ends its reply."""
    messages = [{"role": "user", "content": text}]
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages},
        "/v1/completions": {"prompt": text},
        "/v1/responses": {"input": messages},
        "/v1/messages": {"messages": messages, "max_tokens": 1_000_000},
    }
    return {"model": ENDLESS, "stream": stream} | asked[path]


def num_cancelled(server: RunningServer) -> float:
    labels = {"model": f"{ENDLESS}:latest", "reason": "cancelled"}
    registry = server.context.manager.metrics.registry
    return registry.get_sample_value("anser_replies_total", labels) or 0


def is_idle(server: RunningServer) -> bool:
    return all(loaded.engine.load.is_idle for loaded in server.context.manager.loaded())


def warm_up(server: RunningServer) -> None:
    server.post("/v1/completions", model=ENDLESS)
    wait_until(lambda: is_idle(server))


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_ends_its_generation(server: RunningServer, path: str) -> None:
    before = num_cancelled(server)
    with endless_stream(server, path) as lines:
        assert next(lines)
        assert not is_idle(server)
    wait_until(lambda: num_cancelled(server) == before + 1)
    wait_until(lambda: is_idle(server))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_so_does_one_that_leaves_while_its_prompt_is_read(
    server: RunningServer, path: str, stream: bool
) -> None:
    warm_up(server)
    before = num_cancelled(server)
    content = json.dumps(asking(path, LONG_TEXT, stream=stream)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), TIMEOUT_S) as connection:
        connection.sendall(head.encode() + content)
        wait_until(lambda: not is_idle(server))
    wait_until(lambda: num_cancelled(server) == before + 1)
    wait_until(lambda: is_idle(server))


@pytest.mark.parametrize("path", PATHS)
def test_a_failure_before_the_first_event_has_a_status(
    server: RunningServer, fail_in: FailIn, path: str
) -> None:
    for stream in (True, False):
        warm_up(server)
        fail_in(0)
        # A prompt that nobody has read before.
        response = server.post(path, **asking(path, f"{path} {stream}", stream=stream))
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        error = response.json()["error"]
        assert error["type"] == "api_error"
        assert "the memory is on fire" in error["message"]


def test_a_failure_in_a_stream_ends_it_in_each_apis_own_way(
    server: RunningServer, fail_in: FailIn
) -> None:
    def last_event(path: str) -> str:
        warm_up(server)
        fail_in(5)
        with endless_stream(server, path) as lines:
            *_, last = "\n".join(lines).strip().split("\n\n")
        return last

    for path in ("/v1/chat/completions", "/v1/completions"):
        error = json.loads(last_event(path).removeprefix("data: "))
        assert list(error) == ["error"]
        assert "the memory is on fire" in error["error"]["message"]
    name, _, data = last_event("/v1/responses").partition("\ndata: ")
    failed = json.loads(data)
    assert (name, failed["type"]) == ("event: response.failed", "response.failed")
    assert failed["response"]["status"] == "failed"
    assert "the memory is on fire" in failed["response"]["error"]["message"]
    name, _, data = last_event("/v1/messages").partition("\ndata: ")
    error = json.loads(data)
    assert (name, error["type"]) == ("event: error", "error")
    assert "the memory is on fire" in error["error"]["message"]


def test_the_clients_raise_what_ends_their_streams(server: RunningServer, fail_in: FailIn) -> None:
    warm_up(server)
    fail_in(5)
    with (
        openai_client(server) as api,
        pytest.raises(openai.APIError, match="the memory is on fire"),
    ):
        for _ in api.chat.completions.create(model=ENDLESS, messages=HELLO, stream=True):
            pass
    warm_up(server)
    fail_in(5)
    with (
        anthropic_client(server) as claude,
        pytest.raises(anthropic.APIStatusError, match="the memory is on fire"),
        claude.messages.stream(model=ENDLESS, messages=HELLO, max_tokens=99) as events,
    ):
        events.get_final_message()


def test_a_failure_does_not_touch_other_requests(server: RunningServer, fail_in: FailIn) -> None:
    warm_up(server)
    fail_in(5)
    with endless_stream(server, "/v1/chat/completions") as lines:
        assert list(lines)
    answer = server.post("/v1/chat/completions", model=ENDLESS, messages=HELLO, max_tokens=3)
    assert answer.json()["usage"]["completion_tokens"] == 3


def test_a_server_that_stops_ends_what_is_running(models: Path) -> None:
    with (
        running(Settings(models=models, device="cpu")) as server,
        endless_stream(server, "/v1/messages") as lines,
    ):
        next(lines)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < TIMEOUT_S / 2


def test_no_text_breaks_a_line() -> None:
    text = "a\r\nb\x0bc\x0cd\x1ce\x1df\x1eg\x85h\u2028i\u2029j"
    line = to_json({"text": text}).decode()
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"text": text}
