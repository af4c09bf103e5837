"""What a client that sends a session's file may hold, and for how long."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from io import BufferedRandom
from pathlib import Path

import httpx
import pytest

from server.sessions import uploads
from server.sessions.uploads import MAX_UPLOADS, SlowUploadError, Uploads
from server.settings import Settings
from server.wire.errors import ApiError
from tests.tools.running_server import TIMEOUT_S, RunningServer, running

SHORT_S = 0.05
MB = 1 << 20


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    states = tmp_path_factory.mktemp("states")
    with running(Settings(models=models, device="cpu", states=states)) as server:
        yield server


async def body_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def silent() -> AsyncIterator[bytes]:
    yield b"a beginning"
    await asyncio.Event().wait()


async def dripping() -> AsyncIterator[bytes]:
    """Never silent, and never done."""
    while True:
        yield b"x"
        await asyncio.sleep(0)


def received(
    body: AsyncIterator[bytes], timeout_s: float, file: BufferedRandom, length: str = ""
) -> int:
    async def receive() -> int:
        return await asyncio.wait_for(Uploads(timeout_s).receive(body, length, file), TIMEOUT_S)

    return asyncio.run(receive())


@pytest.mark.parametrize("client", [silent, dripping])
def test_who_is_silent_or_drips_is_cut_off(
    client: Callable[[], AsyncIterator[bytes]], tmp_path: Path
) -> None:
    with (tmp_path / "file").open("w+b") as file, pytest.raises(SlowUploadError) as caught:
        received(client(), SHORT_S, file)
    assert caught.value.status == 408
    assert str(caught.value).startswith("the saved state came too slowly: less than 1 MB in 0.05 s")


@pytest.mark.parametrize(("piece_bytes", "is_quick_enough"), [(MB, True), (MB // 4, False)])
def test_every_megabyte_has_its_own_time(
    tmp_path: Path, piece_bytes: int, is_quick_enough: bool
) -> None:
    """The whole body may take longer than a piece of it."""
    now_s = 0.0

    async def body() -> AsyncIterator[bytes]:
        nonlocal now_s
        for _ in range(4):
            now_s += 0.6 * TIMEOUT_S
            yield bytes(piece_bytes)

    async def receive(file: BufferedRandom) -> int:
        return await Uploads(TIMEOUT_S, lambda: now_s).receive(body(), "", file)

    with (tmp_path / "file").open("w+b") as file:
        if is_quick_enough:
            assert asyncio.run(receive(file)) == 4 * MB
            assert file.tell() == 4 * MB
        else:
            with pytest.raises(SlowUploadError):
                asyncio.run(receive(file))


def test_pieces_of_any_size_are_written_in_order(tmp_path: Path) -> None:
    pieces = [b"", b"ab", bytes(MB - 1), b"c" * (3 * MB), b"", b"d"]
    with (tmp_path / "file").open("w+b") as file:
        assert received(body_of(*pieces), TIMEOUT_S, file) == sum(map(len, pieces))
        file.seek(0)
        assert file.read() == b"".join(pieces)


def test_the_largest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_FILE_BYTES", 10)
    with (tmp_path / "file").open("w+b") as file:
        assert received(body_of(b"x" * 10), TIMEOUT_S, file, "10") == 10
        for body, length in ((body_of(b"x" * 11), ""), (silent(), "11"), (body_of(b"x" * 11), "1")):
            with pytest.raises(ApiError) as caught:
                received(body, TIMEOUT_S, file, length)
            assert caught.value.status == 413


def test_so_many_at_once(tmp_path: Path) -> None:
    found = Uploads()
    with ExitStack() as stack:
        for _ in range(MAX_UPLOADS):
            stack.enter_context(found.file(tmp_path))
        with pytest.raises(ApiError, match="too many saved states") as caught, found.file(tmp_path):
            pass
        assert caught.value.status == 503
    with found.file(tmp_path):
        pass


def open_files(folder: Path) -> list[str]:
    """Those in a folder that this process, in which the server runs, has open without a name."""
    links = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(each))
        except FileNotFoundError:  # the one that listed them
            continue
    return [each for each in links if each.startswith(str(folder)) and each.endswith("(deleted)")]


def test_a_server_lets_go_of_a_client_that_stops_sending(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server.context.settings.states
    assert folder is not None
    monkeypatch.setattr(server.context.sessions.uploads, "_piece_timeout_s", SHORT_S)
    url = httpx.URL(server.url)
    head = b"PUT /api/sessions/x/state HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((url.host, url.port or 80), TIMEOUT_S) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.sendall(head + b"part of it")
        answer = b""
        while piece := connection.recv(1 << 16):  # until the server closes the connection
            answer += piece
    status, _, rest = answer.partition(b"\r\n")
    assert status == b"HTTP/1.1 408 Request Timeout"
    assert b"connection: close\r\n" in rest.lower()
    assert rest.endswith(b's; send it again"}')
    assert open_files(folder) == []
    assert server.context.sessions.uploads._num_open == 0
    assert server.http.get("/api/sessions/x").status_code == 404
