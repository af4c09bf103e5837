"""What happens at the same time: long prompts, clients that leave, queues, failures."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import statistics
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import Tensor

from rwkv_core import load_model
from rwkv_core.checkpoint.gguf_writer import GGUFWriter
from rwkv_core.engine import Engine, Generation, GenerationRequest, Sink
from rwkv_core.errors import GenerationError
from rwkv_core.executor import Segment
from rwkv_core.model import Model
from rwkv_core.sampler import SamplingOptions
from server.loading import model_loading as server_model_loading
from server.settings import Settings
from server.store.names import ModelName
from server.store.stored_model import ModelParts, write_model
from server.wire import streaming as server_streaming
from server.wire.streaming import generate
from tests.tools.running_server import ENDLESS, TIMEOUT_S, RunningServer, running, wait_until
from tests.tools.server_models import BYTES, write_endless_gguf

# Many seconds of reading, even for the smallest model.
LONG_PROMPT = "x" * 300_000


class Spy:
    """Sees every request that is submitted and every piece of a text that a model reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.submitted: list[str] = []
        self.read: list[str] = []
        self.fails_at: int | None = None  # so many passes from now on
        submit, advance_batch = Engine.submit, Model.advance_batch

        def spied_submit(engine: Engine, request: GenerationRequest, sink: Sink) -> Generation:
            self.submitted.append(BYTES.decode(list(request.prompt_token_ids)))
            return submit(engine, request, sink)

        def spied_advance_batch(
            model: Model, segments: Sequence[Segment], **options: Any
        ) -> Tensor:
            self.read += [BYTES.decode(segment.token_ids.tolist()) for segment in segments]
            if self.fails_at is not None:
                self.fails_at -= 1
                if self.fails_at < 0:
                    self.fails_at = None
                    raise RuntimeError("the memory is on fire\nhere is why")
            return advance_batch(model, segments, **options)

        monkeypatch.setattr(Engine, "submit", spied_submit)
        monkeypatch.setattr(Model, "advance_batch", spied_advance_batch)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


@pytest.fixture(scope="module")
def narrow_server(models: Path) -> Iterator[RunningServer]:
    """Runs one request at a time, and lets two more wait."""
    settings = Settings(models=models, device="cpu", num_parallel=1, max_queue=2)
    with running(settings) as server:
        yield server


@contextmanager
def endless_stream(server: RunningServer, prompt: str = "go on") -> Iterator[Iterator[str]]:
    """A reply that only its client ends: by leaving this block."""
    body = {"model": ENDLESS, "prompt": prompt, "raw": True}
    with server.http.stream("POST", "/api/generate", json=body) as response:
        assert response.status_code == 200
        yield response.iter_lines()


@contextmanager
def abandoned(server: RunningServer, **body: Any) -> Iterator[None]:
    """A request whose client waits for an answer inside this block, and hangs up at its end."""
    content = json.dumps({"model": ENDLESS, "raw": True, **body}).encode()
    head = (
        f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), TIMEOUT_S) as connection:
        connection.sendall(head.encode() + content)
        yield


def short(server: RunningServer, prompt: str = "short") -> dict[str, Any]:
    return server.answer(
        "/api/generate", model=ENDLESS, prompt=prompt, raw=True, options={"num_predict": 2}
    )


def is_idle(server: RunningServer) -> bool:
    return all(loaded.engine.load.is_idle for loaded in server.context.manager.loaded())


def test_the_version_is_there_while_a_long_prompt_is_read(server: RunningServer, spy: Spy) -> None:
    with abandoned(server, prompt=LONG_PROMPT):
        wait_until(lambda: len(spy.read) > 2)
        seconds = []
        for _ in range(15):
            start = time.monotonic()
            assert server.http.get("/api/version").status_code == 200
            seconds.append(time.monotonic() - start)
        # The prompt was read all the while.
        assert sum(map(len, spy.read)) < len(LONG_PROMPT)
        # Milliseconds on an idle machine; the tests may have to share one.
        assert statistics.median(seconds) < 0.25
        assert server.http.get("/api/tags").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_its_prompt_is_read(
    server: RunningServer, spy: Spy, stream: bool
) -> None:
    with abandoned(server, prompt=LONG_PROMPT, stream=stream):
        wait_until(lambda: len(spy.read) > 2)
    assert short(server)["done"]
    assert sum(map(len, spy.read)) < len(LONG_PROMPT)


def test_a_client_that_leaves_in_the_middle_of_a_reply(server: RunningServer) -> None:
    with endless_stream(server) as lines:
        for _ in range(3):
            assert json.loads(next(lines))["response"]
    wait_until(lambda: is_idle(server))
    assert short(server)["done"]


def test_a_client_that_leaves_while_an_answer_is_collected(server: RunningServer, spy: Spy) -> None:
    with abandoned(server, prompt="collected", stream=False):
        wait_until(lambda: len(spy.read) > 3)
    assert short(server)["done"]


def test_a_client_that_leaves_the_queue_is_never_served(
    narrow_server: RunningServer, spy: Spy
) -> None:
    with ThreadPoolExecutor() as pool:
        with endless_stream(narrow_server) as lines:
            next(lines)
            with abandoned(narrow_server, prompt="impatient"):
                wait_until(lambda: "impatient" in spy.submitted)
            patient = pool.submit(short, narrow_server, "patient")
            wait_until(lambda: "patient" in spy.submitted)
            next(lines)
            assert not patient.done()
        assert patient.result()["done"]
    assert "patient" in spy.read
    assert "impatient" not in spy.read


def test_requests_are_served_in_the_order_they_came(narrow_server: RunningServer, spy: Spy) -> None:
    prompts = ["first", "second"]
    with ThreadPoolExecutor() as pool:
        with endless_stream(narrow_server) as lines:
            next(lines)
            answers = []
            for prompt in prompts:
                answers.append(pool.submit(short, narrow_server, prompt))
                wait_until(lambda prompt=prompt: prompt in spy.submitted)  # type: ignore[misc]
            refused = narrow_server.post("/api/generate", model=ENDLESS, prompt="x", raw=True)
            assert refused.status_code == 503
            assert refused.json() == {
                "error": "server busy, please try again.  maximum pending requests exceeded"
            }
        assert all(answer.result()["done"] for answer in answers)
    assert [text for text in spy.read if text in prompts] == prompts


def test_a_stream_does_not_wait_for_another(server: RunningServer) -> None:
    with endless_stream(server) as one, endless_stream(server, "another") as other:
        for _ in range(5):
            assert json.loads(next(one))["response"]
            assert json.loads(next(other))["response"]
        assert short(server)["done"]


def test_a_failure_before_the_first_line_has_a_status(server: RunningServer, spy: Spy) -> None:
    for stream in (True, False):
        wait_until(lambda: is_idle(server))
        spy.fails_at = 0
        body = {"model": ENDLESS, "prompt": f"fails {stream}", "raw": True}
        response = server.post("/api/generate", stream=stream, **body)
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        assert list(response.json()) == ["error"]
        assert "the memory is on fire" in response.json()["error"]
        assert "\n" not in response.json()["error"]
    assert short(server)["done"]


def test_a_failure_in_a_stream_is_its_last_line(server: RunningServer, spy: Spy) -> None:
    short(server)  # so that the model is loaded
    wait_until(lambda: is_idle(server))
    spy.fails_at = 5
    response = server.post("/api/generate", model=ENDLESS, prompt="x", raw=True)
    assert response.status_code == 200
    *chunks, last = [json.loads(line) for line in response.text.splitlines()]
    assert chunks
    assert all(chunk["done"] is False for chunk in chunks)
    assert list(last) == ["error"]
    assert "the memory is on fire" in last["error"]
    assert short(server)["done"]


def test_a_failure_while_an_answer_is_collected_has_a_status(
    server: RunningServer, spy: Spy
) -> None:
    short(server)
    wait_until(lambda: is_idle(server))
    spy.fails_at = 5
    response = server.post("/api/generate", model=ENDLESS, prompt="x", raw=True, stream=False)
    assert response.status_code == 500
    assert list(response.json()) == ["error"]


def test_a_model_is_loaded_once_for_all_who_wait(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.unload_all()
    loads: list[Path] = []
    may_load = threading.Event()

    def slow_load(path: Path, **options: Any) -> Model:
        loads.append(path)
        assert may_load.wait(TIMEOUT_S)
        return load_model(path, **options)

    monkeypatch.setattr(server_model_loading, "load_model", slow_load)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(short, server) for _ in range(4)]
        wait_until(lambda: bool(loads))
        with abandoned(server, prompt="gone before it is loaded"):
            assert server.http.get("/api/version").status_code == 200
        may_load.set()
        assert all(answer.result()["done"] for answer in answers)
    assert len(loads) == 1


def test_a_model_in_use_is_not_unloaded(server: RunningServer) -> None:
    with endless_stream(server) as lines:
        next(lines)
        assert server.post("/api/generate", model=ENDLESS, keep_alive=0).status_code == 200
        for _ in range(5):
            assert "error" not in json.loads(next(lines))
        assert len(server.context.manager.loaded()) == 1
    wait_until(lambda: not server.context.manager.loaded())


def test_an_unloaded_model_gives_its_memory_back_at_once(server: RunningServer) -> None:
    gc.disable()  # weights are too large to wait for the collector of cycles
    try:
        short(server)
        with endless_stream(server) as lines:
            next(lines)
        model = weakref.ref(server.context.manager.loaded()[0].model)
        server.unload_all()
        wait_until(lambda: model() is None)
    finally:
        gc.enable()


def test_an_engine_that_has_died_is_replaced(server: RunningServer) -> None:
    short(server)
    server.context.manager.loaded()[0].engine.close()
    assert short(server)["done"]


def test_a_file_that_cannot_be_loaded_is_an_error_in_one_line(
    server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "broken.gguf"
    with GGUFWriter(file) as writer:
        writer.add_metadata("general.architecture", "rwkv7")
    store = server.context.store
    name = ModelName.parse("broken")
    write_model(store, name, store.add_blob(file), ModelParts())
    try:
        for path, body in (("generate", {"prompt": "x"}), ("chat", {})):
            response = server.post(f"/api/{path}", model="broken", **body)
            assert response.status_code == 500
            error = response.json()["error"]
            assert error.startswith("unable to load model broken:latest: ")
            assert "\n" not in error
            assert str(store.root) not in error
    finally:
        store.manifest_path(name).unlink()
    assert short(server)["done"]


def test_a_client_that_stops_reading_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine never waits for a client, and what a client leaves unread is bounded."""
    monkeypatch.setattr(server_streaming, "_MAX_UNREAD_CHARS", 200)
    file = tmp_path / "endless.gguf"
    write_endless_gguf(file)
    engine = Engine(load_model(file))
    endless = GenerationRequest((66, 67), SamplingOptions(), max_new_tokens=None, stops=())
    short = GenerationRequest((66,), SamplingOptions(), max_new_tokens=1, stops=())

    async def read_and_stop() -> None:
        events = generate(engine, endless)
        await anext(events)
        wait_until(lambda: not engine.load.num_running)
        assert [event async for event in generate(engine, short)]
        with pytest.raises(GenerationError, match="stopped reading"):
            async for _ in events:
                pass

    try:
        asyncio.run(read_and_stop())
    finally:
        engine.close()


def test_a_server_that_stops_ends_what_is_running(models: Path) -> None:
    with running(Settings(models=models, device="cpu")) as server, endless_stream(server) as lines:
        next(lines)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < TIMEOUT_S / 2
