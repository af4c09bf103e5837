"""`/api/create` and `/api/blobs` on a real server: what is made, what is refused, what stays."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from rwkv_core.config import ModelConfig
from server.creating.create_request import create_from_request
from server.creating.jobs import JobCancelledError, Json, Report, run_job
from server.settings import Settings
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import StoredModel, open_model
from server.wire.manage_schemas import CreateRequest
from tests.tools.random_checkpoint import random_tensors, write_pth
from tests.tools.running_server import RunningServer, running, wait_until
from tests.tools.server_models import SMALL, add_endless_model, write_endless_gguf
from tests.tools.time_states import time_state, write_time_state

# A World model, so that its vocabulary is known; as narrow as it can be.
WORLD = ModelConfig(
    n_layer=2, n_embd=32, head_size=16, vocab_size=65536, n_ffn=64, decay_rank=4, iclr_rank=4,
    value_rank=4, gate_rank=4,
)  # fmt: skip
BASE = "base"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """One with a store of its own, in which `base` is."""
    settings = Settings(models=tmp_path / "models", device="cpu")
    with running(settings) as server:
        add_endless_model(server.context.store, BASE, tmp_path)
        yield server


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_endless_gguf(path, seed=3)
    return path.read_bytes()


@pytest.fixture(scope="module")
def pth(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pth") / "model.pth"
    write_pth(path, random_tensors(WORLD))
    return path.read_bytes()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def upload(server: RunningServer, data: bytes) -> str:
    digest = digest_of(data)
    assert server.http.post(f"/api/blobs/{digest}", content=data).status_code in (200, 201)
    return digest


def opened(server: RunningServer, name: str) -> StoredModel:
    model = open_model(server.context.store, ModelName.parse(name))
    assert model is not None
    return model


def connected(server: RunningServer) -> socket.socket:
    address = server.http.base_url
    assert address.port is not None
    return socket.create_connection((address.host, address.port))


def create(server: RunningServer, **body: Any) -> list[str]:
    """The statuses of a create that goes well, without their digests."""
    lines = server.stream("/api/create", **body)
    assert lines[-1] == {"status": "success"}, lines[-1]
    return [line["status"].partition(" sha256:")[0] for line in lines]


def refusal(server: RunningServer, **body: Any) -> tuple[int, str]:
    response = server.post("/api/create", **body)
    lines = response.text.splitlines()
    return response.status_code, json.loads(lines[-1])["error"]


def files(server: RunningServer) -> set[str]:
    root = server.context.store.root
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_model_from_a_model_with_everything(server: RunningServer) -> None:
    before = opened(server, BASE)
    statuses = create(
        server,
        model="Mine:v1",
        **{"from": BASE},
        system="Be kind.",
        template="{{ .Prompt }}",
        parameters={"temperature": 0.5, "stop": ["END"], "seed": None},
        messages=[{"role": "user", "content": "hi"}, {"role": "ASSISTANT", "content": "hello"}],
        license=["MIT", "Apache"],
        requires="0.4.0",
        renderer="some",
    )
    assert statuses[0] == "using existing layer"
    assert set(statuses[1:-2]) == {"creating new layer"}
    assert statuses[-2:] == ["writing manifest", "success"]
    model = opened(server, "mine:V1")
    assert model.path == before.path
    assert (model.system, model.template) == ("Be kind.", "{{ .Prompt }}")
    assert model.parameters == {"temperature": 0.5, "stop": ["END"]}
    assert [(each.role, each.content) for each in model.messages] == [
        ("user", "hi"),
        ("assistant", "hello"),
    ]
    assert model.licenses == ("MIT", "Apache")
    shown = server.answer("/api/show", model="mine:v1")
    assert shown["template"] == "{{ .Prompt }}"
    assert "TEMPLATE {{ .Prompt }}" in shown["modelfile"]
    assert "RENDERER some\n" in shown["modelfile"]
    assert shown["requires"] == "0.4.0"
    assert shown["details"]["parent_model"] == f"{BASE}:latest"
    create(server, name="child", **{"from": "Mine:v1"}, license="BSD", parameters={"seed": 1})
    child = opened(server, "child")
    assert (child.system, child.template) == (model.system, model.template)
    assert child.licenses == ("MIT", "Apache", "BSD")
    assert child.parameters == {"temperature": 0.5, "stop": ["END"], "seed": 1}
    assert server.answer("/api/show", model="child")["requires"] == "0.4.0"


def test_a_model_from_a_file_that_was_sent(server: RunningServer, gguf: bytes) -> None:
    digest = digest_of(gguf)
    head = server.http.head(f"/api/blobs/{digest}")
    assert (head.status_code, head.text) == (404, "")
    first = server.http.post(f"/api/blobs/{digest}", content=gguf)
    assert (first.status_code, first.text) == (201, "")
    assert server.http.post(f"/api/blobs/{digest}", content=gguf).status_code == 200
    assert server.http.head(f"/api/blobs/{digest}").status_code == 200
    statuses = create(server, model="new", files={"rwkv7-g1-my.gguf": digest})
    assert statuses[:2] == ["parsing GGUF", "using existing layer"]
    model = opened(server, "new")
    assert model.path == server.context.store.blob_path(digest)
    assert model.title == "rwkv7-g1-my"
    answer = server.answer("/api/generate", model="new", prompt="hi", options={"num_predict": 2})
    assert answer["done_reason"] == "length"


def test_files_are_converted_and_quantized(server: RunningServer, pth: bytes) -> None:
    digest = upload(server, pth)
    lines = server.stream(
        "/api/create", model="rwkv7-g1:q8", files={"model.pth": digest}, quantize="q8_0"
    )
    bars = [line for line in lines if line["status"] == "quantizing F32 model to Q8_0"]
    assert bars
    assert all(bar["digest"] for bar in bars)
    assert all(0 < bar["completed"] <= bar["total"] for bar in bars)
    assert any(line["status"] == "verifying conversion" for line in lines)
    model = opened(server, "rwkv7-g1:q8")
    assert model.quantization == "Q8_0"
    assert model.title == "rwkv7-g1", "a file named model says nothing: the name does"
    answer = server.answer(
        "/api/create", model="smaller", **{"from": "rwkv7-g1:q8"}, quantize="Q4_K"
    )
    assert answer == {"status": "success"}
    assert opened(server, "smaller").quantization == "Q4_K_M"


def test_a_report_for_each_row_is_not_an_object_for_each_row() -> None:
    num_rows = 100_000

    def work(report: Report) -> None:
        for row in range(num_rows):
            report("quantizing", row + 1, num_rows)

    async def follow() -> list[Json]:
        return [each async for each in run_job(work)]

    started = time.monotonic()
    objects = asyncio.run(follow())
    assert len(objects) <= (time.monotonic() - started) / 0.05 + 2
    assert objects[-1]["completed"] == num_rows


def test_an_adapter_is_a_state_file(server: RunningServer, tmp_path: Path) -> None:
    file = write_time_state(tmp_path / "tuned.pth", time_state(SMALL))
    digest = upload(server, file.read_bytes())
    statuses = create(server, model="tuned", **{"from": BASE}, adapters={"tuned.pth": digest})
    assert statuses[0] == "converting adapter"
    assert opened(server, "tuned").adapter is not None
    code, problem = refusal(
        server, model="two", **{"from": BASE}, adapters={"a": digest, "b": digest}
    )
    assert (code, problem) == (400, "only one adapter is currently supported")
    code, problem = refusal(
        server, model="bad", **{"from": BASE}, adapters={"../a.pth": upload(server, b"x" * 100)}
    )
    assert code in (200, 400)
    assert problem.startswith("a.pth: ")


def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    server: RunningServer, gguf: bytes
) -> None:
    digest, text = upload(server, gguf[:5000]), upload(server, b"once upon a time")
    before = files(server)
    absent = "sha256:" + "0" * 64
    base, far = {"from": BASE}, {"from": "127.0.0.1:1/a/nobody"}
    for body, code, problem in (
        ({}, 400, "invalid model name"),
        ({"model": "../evil", **base}, 400, "invalid model name"),
        ({"model": "a/b/c/d", **base}, 400, "invalid model name"),
        ({"model": "new"}, 400, "neither 'from' or 'files' was specified"),
        ({"model": "new", **far}, 500,
         "pull model manifest: cannot reach 127.0.0.1:1"),
        ({"model": "new", "from": "/etc/passwd"}, 400, "invalid model name"),
        ({"model": "new", "files": {"../x.gguf": digest}}, 400, "file path must be relative"),
        ({"model": "new", "files": {"/x.gguf": digest}}, 400, "file path must be relative"),
        ({"model": "new", "files": {"x.gguf": ""}}, 400, "invalid digest format"),
        ({"model": "new", "files": {"x.gguf": "sha256:../.."}}, 400, "invalid digest format"),
        ({"model": "new", "files": {"x.gguf": absent}}, 400, f'blob "{absent}" not found'),
        ({"model": "new", "files": {}}, 400, "no files provided to convert"),
        ({"model": "new", "files": {"x" * 300: digest}}, 400, "cannot be used"),
        ({"model": "new", "files": {"a": digest, "a/b": digest}}, 400, "cannot be used"),
        ({"model": "new", "files": {"x.txt": text}}, 400, "x.txt: is no .pth, safetensors"),
        ({"model": "new", **base, "quantize": "q9_9"}, 400,
         "unsupported quantization type Q9_9 - supported types are Q8_0"),
        ({"model": "new", **base, "parameters": {"temperature": "hot"}}, 400,
         'option "temperature" must be of type float32'),
        ({"model": "new", **base, "messages": [{"role": "robot"}]}, 400, "message role must be"),
        ({"model": "new", **base, "license": 5}, 400, "license must be a string or a list"),
        ({"model": "new", **base, "requires": "soon"}, 400, "requires must be a valid semver"),
        ({"model": "new", **base, "requires": "999.0.0"}, 400, "REQUIRES Ollama 999.0.0"),
        ({"model": "new", **base, "draft_files": {"x": digest}}, 400, "draft models"),
        # Nothing is pulled for a request that cannot be fulfilled.
        ({"model": "new", **far, "quantize": "q9"}, 400, "unsupported quantization type Q9"),
        ({"model": "new", **far, "template": "{{ if }}"}, 400, "template error: "),
        ({"model": "new", **far, "parameters": {"top_p": 7}}, 400, "option top_p must be between"),
        ({"model": "new", **far, "adapters": {"a": absent}}, 400, f'blob "{absent}" not found'),
        ({"model": 5}, 400, "json: cannot unmarshal number into Go struct field"),
        ({"model": "new", "files": ["x"]}, 400, "json: cannot unmarshal array"),
    ):  # fmt: skip
        response = server.post("/api/create", stream=False, **body)
        assert (response.status_code, response.json().keys()) == (code, {"error"}), body
        assert problem in response.json()["error"], body
    code, problem = refusal(server, model="new", files={"cut.gguf": digest})
    assert problem.startswith("cut.gguf: ")
    assert files(server) == before


def test_a_model_is_replaced_and_its_blobs_go(server: RunningServer, gguf: bytes) -> None:
    create(server, model="new", files={"x.gguf": upload(server, gguf)}, system="one")
    old = opened(server, "new")
    server.answer("/api/generate", model="new", prompt="hi", options={"num_predict": 1})
    create(server, model="NEW", **{"from": BASE})
    new = opened(server, "new")
    assert new.path == opened(server, BASE).path
    assert not old.path.exists()
    for layer in old.manifest.layers:
        assert not server.context.store.has_blob(layer.digest)
    wait_until(lambda: not server.http.get("/api/ps").json()["models"])
    assert new.name.shortest == "new:latest"


def test_a_running_reply_goes_on_when_its_model_is_replaced(
    server: RunningServer, gguf: bytes
) -> None:
    create(server, model="busy", files={"x.gguf": upload(server, gguf)})
    old = opened(server, "busy")
    body = {"model": "busy", "prompt": "hi", "options": {"num_predict": 400}}
    with server.http.stream("POST", "/api/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        create(server, model="busy", **{"from": BASE}, system="New.")
        assert not old.path.exists()
        last = json.loads(list(lines)[-1])
    assert (last["done_reason"], last["eval_count"]) == ("length", 400)
    answer = server.answer("/api/generate", model="busy", prompt="x", options={"num_predict": 1})
    assert answer["done"]
    (loaded,) = server.context.manager.loaded()
    assert loaded.stored.path == opened(server, BASE).path
    assert loaded.stored.system == "New."


def test_two_creates_of_one_name_at_once(server: RunningServer) -> None:
    answers: list[httpx.Response] = []

    def make(system: str) -> None:
        answers.append(
            httpx.post(
                f"{server.url}/api/create",
                json={"model": "same", "from": BASE, "system": system, "stream": False},
                timeout=90,
            )
        )

    threads = [threading.Thread(target=make, args=(f"number {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.json() for answer in answers] == [{"status": "success"}] * 8
    model = opened(server, "same")
    assert model.system.startswith("number ")
    systems = [file for file in files(server) if "blobs" in file and _text(server, file)]
    assert len(systems) == 1, "what was replaced is gone"


def _text(server: RunningServer, file: str) -> bool:
    return (server.context.store.root / file).read_bytes().startswith(b"number ")


def test_a_client_that_goes_away_ends_the_work(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work stays at its first status, with blobs in their places, until nobody wants it."""
    before = files(server)
    ends: list[BaseException] = []

    def held(store: Store, name: ModelName, asked: CreateRequest, report: Report) -> None:
        def stay(status: str, num_done: int, num_total: int) -> None:
            def is_over() -> bool:
                report(status, num_done, num_total)  # raises when it is
                return False

            wait_until(is_over)

        try:
            create_from_request(store, name, asked, stay)
        except BaseException as error:
            ends.append(error)
            raise

    monkeypatch.setattr("server.routes.create.create_from_request", held)
    body = {"model": "gone", "from": BASE, "system": "new text"}
    with server.http.stream("POST", "/api/create", json=body) as response:
        assert "using existing layer" in next(response.iter_lines())
        assert files(server) != before
    wait_until(lambda: bool(ends))
    assert isinstance(ends[0], JobCancelledError)
    assert files(server) == before
    monkeypatch.undo()
    create(server, **body)


def test_a_blob_of_another_digest_is_refused(server: RunningServer) -> None:
    before = files(server)
    wrong = "sha256:" + "1" * 64
    answer = server.http.post(f"/api/blobs/{wrong}", content=b"hello")
    assert answer.status_code == 400
    assert answer.json() == {
        "error": f'digest mismatch, expected "{wrong}", got "{digest_of(b"hello")}"'
    }
    for bad in ("sha256:..", "md5:" + "0" * 32, "sha256:" + "g" * 64):
        for method in ("HEAD", "POST"):
            answer = server.http.request(method, f"/api/blobs/{bad}")
            assert answer.status_code == 400
    assert answer.json() == {"error": "invalid digest format"}
    assert files(server) == before


def test_a_client_that_goes_away_leaves_no_blob(server: RunningServer) -> None:
    before = files(server)
    with connected(server) as connection:
        head = f"POST /api/blobs/sha256:{'2' * 64} HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(f"{head}Content-Length: 50000000\r\n\r\n".encode() + b"x" * 3_000_000)
        wait_until(lambda: len(files(server)) > len(before))
    wait_until(lambda: files(server) == before)


def test_a_blob_that_does_not_fit_is_refused_at_once(server: RunningServer) -> None:
    with connected(server) as connection:
        head = f"POST /api/blobs/sha256:{'3' * 64} HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(f"{head}Content-Length: {10**18}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"do not fit on this disk" in answer


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_error(
    server: RunningServer, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(server)
    real = Store.temporary_file

    def on_full_disk(store: Store) -> Path:
        path = real(store)
        path.unlink()
        path.symlink_to("/dev/full")
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Store, "temporary_file", on_full_disk)
        answers = [
            server.http.post(f"/api/blobs/{digest_of(gguf)}", content=gguf),
            server.post("/api/create", model="new", stream=False, **{"from": BASE}, system="x"),
            server.post("/api/copy", source=BASE, destination="other"),
        ]
    for each in answers:
        assert each.status_code == 500
        assert "No space left on device" in each.json()["error"]
        assert "make room" in each.json()["error"]
    assert files(server) == before


def test_no_request_makes_the_server_fail(server: RunningServer) -> None:
    """Values of every kind in every field: an answer of 200 or one with a reason, never a 500."""
    absent, chance = "sha256:" + "0" * 64, random.Random(5)
    odd: list[Any] = [
        None, True, 0, -1, 1e308, "", "x", "a\x00b", "../..", "é" * 300, absent, [], ["x"], [[]],
        {}, {"x": 1}, {"x": absent}, {"": ""}, {"a": {"b": [None]}}, [{"role": "user"}], "q8_0",
        [{"role": "user", "content": "\ud800"}], {"stop": [1]}, {"seed": 1e400}, {"top_k": True},
    ]  # fmt: skip
    fields = [
        "model", "from", "files", "adapters", "quantize", "template", "license", "system",
        "parameters", "messages", "stream", "requires", "draft_files", "source", "destination",
    ]  # fmt: skip
    for _ in range(250):
        body = {"model": "fuzz", "from": BASE, "source": BASE, "destination": "fuzz2"}
        body |= {chance.choice(fields): chance.choice(odd) for _ in range(chance.randint(1, 3))}
        data = json.dumps(body).replace("Infinity", "1e400")
        for method, path in (
            ("POST", "/api/create"), ("POST", "/api/copy"), ("DELETE", "/api/delete"),
            ("POST", "/api/show"),
        ):  # fmt: skip
            answer = server.http.request(method, path, content=data)
            assert answer.status_code in (200, 400, 404), (path, data, answer.text)
            if answer.status_code != 200:
                assert list(answer.json()) == ["error"], (path, data)
    assert server.http.get("/api/tags").status_code == 200
    assert opened(server, BASE)


def test_the_official_client(server: RunningServer, tmp_path: Path, gguf: bytes) -> None:
    path = tmp_path / "official.gguf"
    path.write_bytes(gguf)
    with ollama.Client(host=server.url, timeout=90) as client:
        digest = client.create_blob(path)
        assert digest == digest_of(gguf)
        made = client.create("official", files={path.name: digest}, parameters={"num_predict": 2})
        assert made.status == "success"
        steps = list(client.create("second", from_="official", system="Hi.", stream=True))
        assert steps[-1].status == "success"
        assert client.show("second").modelfile
        client.copy("second", "third")
        assert client.generate("third", "hello").done_reason == "length"
        assert {each.name for each in client.ps().models} == {"third:latest"}
        for name in ("second", "third", "official"):
            assert client.delete(name).status == "success"
        with pytest.raises(ollama.ResponseError, match="model 'third' not found") as caught:
            client.delete("third")
        assert caught.value.status_code == 404
