"""Bodies that are too large, too slow or too deep; none of them costs the others anything."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
import zstandard

from server.settings import Settings
from tests.tools.running_server import TIMEOUT_S, RunningServer, running, wait_until

LIMIT = 1_000_000


@pytest.fixture(scope="module")
def small(models: Path) -> Iterator[RunningServer]:
    """A server that takes a megabyte, and waits half a second."""
    settings = Settings(models=models, device="cpu", max_request_size=LIMIT, request_timeout_s=0.5)
    with running(settings) as server:
        yield server


@contextmanager
def connection(server: RunningServer) -> Iterator[socket.socket]:
    address = server.http.base_url
    with closing(socket.create_connection((address.host, address.port or 0), TIMEOUT_S)) as sock:
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    while data := sock.recv(65536):
        received += data
    return received


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode()


def test_a_large_body_is_refused_before_it_comes(small: RunningServer) -> None:
    with connection(small) as sock:
        sock.sendall(head("/api/chat", "Content-Length: 100000000"))
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error.startswith("request body too large: at most 1000000 bytes")


def test_a_client_that_sends_on_reads_the_refusal(small: RunningServer) -> None:
    body = b"x" * 100_000_000
    start = time.monotonic()
    response = small.http.post("/api/generate", content=body)
    assert response.status_code == 413
    assert time.monotonic() - start < 10  # a second or less on a machine with nothing else to do
    with connection(small) as sock:
        sock.sendall(head("/api/chat", "Content-Length: 2000000", "Expect: 100-continue"))
        assert read_all(sock).startswith(b"HTTP/1.1 413 ")


def test_a_large_body_in_chunks(small: RunningServer) -> None:
    pieces = (b" " * 65536 for _ in range(100))
    response = small.http.post("/api/chat", content=pieces)
    assert response.status_code == 413
    assert "too large" in response.json()["error"]
    assert small.http.get("/api/version").status_code == 200


def test_a_body_of_just_that_size(small: RunningServer) -> None:
    body = json.dumps({"model": "none"}).encode()
    body += b" " * (LIMIT - len(body))
    assert small.http.post("/api/show", content=body).status_code == 404
    assert small.http.post("/api/show", content=body + b" ").status_code == 413


@pytest.mark.parametrize("path", ["/api/show", "/v1/responses", "/v1/messages"])
def test_a_compressed_body(small: RunningServer, path: str) -> None:
    """Some programs send zstd to OpenAI's routes without being asked to."""

    def send(body: bytes, encoding: str = "zstd") -> httpx.Response:
        headers = {"content-encoding": encoding}
        return small.http.post(path, content=body, headers=headers)

    def of_size(size: int) -> bytes:
        return pack(b'{"model": "none", "max_tokens": 1, "input": "x"'.ljust(size - 1) + b"}")

    pack = zstandard.ZstdCompressor().compress
    plain = send(b'{"model": 5}', "identity").json()
    told = send(pack(b'{"model": ') + pack(b"5}"), "ZSTD").json()  # two frames are one text
    assert told["error"] == plain["error"]
    assert "of type string" in json.dumps(told)
    assert "missing request body" in send(pack(b"")).text
    wrong = send(b'{"model": 5}')
    assert wrong.status_code == 400
    assert wrong.json().keys() == plain.keys()
    assert "failed to decompress zstd body" in wrong.text
    assert send(of_size(LIMIT)).status_code in (400, 404)
    bomb = pack(b" " * 50_000_000)
    assert len(bomb) < LIMIT / 100
    for each in (of_size(LIMIT + 1), bomb):
        refused = send(each)
        assert refused.status_code == 413
        assert "request body too large: at most 1000000 bytes" in refused.text
    assert small.http.get("/api/version").status_code == 200


def test_saved_states_have_a_limit_of_their_own(small: RunningServer) -> None:
    response = small.http.put("/api/sessions/x/state", content=b"x" * 2 * LIMIT)
    assert response.status_code == 400
    assert "saved state" in response.json()["error"]


def test_a_slow_body(small: RunningServer) -> None:
    with connection(small) as sock:
        sock.sendall(head("/api/chat", "Content-Length: 1000") + b"{")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"too slowly" in answer


def test_a_body_that_trickles(small: RunningServer) -> None:
    """A byte now and then is no reason to go on waiting."""
    with connection(small) as sock:
        sock.sendall(head("/api/chat", "Transfer-Encoding: chunked"))
        sock.settimeout(0.1)
        answer, deadline = b"", time.monotonic() + TIMEOUT_S
        while not answer and time.monotonic() < deadline:
            sock.sendall(b"1\r\n \r\n")
            with suppress(TimeoutError):
                answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"GET /api/tags HTTP/1.1\r\nHost: local"])
def test_headers_that_do_not_come(small: RunningServer, sent: bytes) -> None:
    with connection(small) as sock:
        sock.sendall(sent)
        assert read_all(sock) == b""


def test_headers_that_do_not_come_after_a_request(small: RunningServer) -> None:
    with connection(small) as sock:
        sock.sendall(head("/api/version", method="GET") + b"GET /api/ver")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_connection_stays_for_the_next_request(small: RunningServer) -> None:
    """Longer than headers may take; the rest of a small body is no hindrance either."""
    address = small.http.base_url
    with closing(HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)) as client:
        client.connect()
        first = client.sock
        for path, status in (("/nothing", 404), ("/api/show", 400), ("/api/chat", 400)):
            client.request("POST", path, body=b"body")
            response = client.getresponse()
            assert (response.status, bool(response.read())) == (status, True)
        time.sleep(0.8)
        client.request("GET", "/api/version")
        assert client.getresponse().read()
        assert client.sock is first


def test_half_sent_bodies_are_not_held_without_end(models: Path) -> None:
    settings = Settings(models=models, device="cpu", max_request_size=LIMIT)
    with running(settings) as server:
        part = b" " * (LIMIT - 100)
        held: list[socket.socket] = []
        answers: list[bytes] = []
        try:
            for _ in range(6):
                address = server.http.base_url
                sock = socket.create_connection((address.host, address.port or 0), TIMEOUT_S)
                held.append(sock)
                sock.sendall(head("/api/chat", f"Content-Length: {LIMIT}") + part)
            held[-1].settimeout(TIMEOUT_S)
            wait_until(lambda: bool(answers) or _peek(held, answers))
            assert answers[0].startswith(b"HTTP/1.1 503 ")
            assert server.post("/api/show", model="none").status_code == 404
        finally:
            for sock in held:
                sock.close()
        large = json.dumps({"model": "none", "system": " " * (LIMIT // 2)})
        wait_until(lambda: server.http.post("/api/show", content=large).status_code == 404)


def _peek(sockets: list[socket.socket], answers: list[bytes]) -> bool:
    """Adds what has come on one of them; whether anything has."""
    for sock in sockets:
        sock.settimeout(0.01)
        with suppress(TimeoutError):
            answers.append(sock.recv(65536))
            return True
    return False


NESTED = {
    "brackets": b"[" * 500_000,
    "closed": b"[" * 90_000 + b"]" * 90_000,
    "objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "in a field": b'{"model":"endless","options":' + b"[" * 900 + b"]" * 900 + b"}",
    "in a tool": b'{"model":"endless","messages":[{"role":"user","content":"x"}],"stream":false,'
    b'"options":{"num_predict":1},"tools":[{"type":"function","function":{"name":"f",'
    b'"parameters":{"type":"object","properties":'
    + b'{"a":{"type":"object","properties":' * 900
    + b"{}"
    + b"}}" * 900
    + b"}}}]}",
    "in a call": b'{"model":"endless","stream":false,"options":{"num_predict":1},"messages":'
    b'[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":'
    + b"[" * 900
    + b"]" * 900
    + b"}}}]}]}",
}


@pytest.mark.parametrize("body", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show"])
def test_deep_json_is_an_error_of_the_client(server: RunningServer, path: str, body: bytes) -> None:
    response = server.http.post(path, content=body)
    assert response.status_code < 500, response.text
    assert len(response.content) < 10_000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" + b"1," * 2_000_000 + b"?]", 400),
        (b"1" * 4_000_000, 400),
        (b"[" + b"[]," * 400_000 + b"0]", 400),
        (b"[" + b"[]," * 4_000_000 + b"0]", 413),  # as lists, a quarter of a gigabyte
    ],
    ids=["no JSON", "one number", "lists", "too many lists"],
)
def test_what_takes_long_to_read_holds_up_nobody(
    server: RunningServer, body: bytes, status: int
) -> None:
    """Others are answered while a large body is parsed."""
    done = threading.Event()
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(httpx.post(f"{server.url}/api/show", content=body, timeout=TIMEOUT_S))
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    slowest = 0.0
    while not done.is_set():
        start = time.monotonic()
        assert server.http.get("/api/version").status_code == 200
        slowest = max(slowest, time.monotonic() - start)
    sender.join()
    (response,) = answers
    assert response.status_code == status
    assert len(response.content) < 1000
    assert slowest < 5  # a few tenths of a second where nothing else runs


def test_the_words_for_a_large_body_that_is_no_json(server: RunningServer) -> None:
    response = httpx.post(f"{server.url}/api/show", content=b'{"model": "' + b"x" * 2_000_000)
    assert response.status_code == 400
    assert response.json()["error"].startswith("invalid JSON at character ")
