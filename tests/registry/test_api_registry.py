"""`/api/pull` and `/api/push` through a real server, with the official client too."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from server.settings import Settings
from server.store.demo_model import DEMO_FILE
from server.store.names import ModelName
from server.store.stored_model import open_model
from tests.tools.registry import DEMO_PATH, Registry, digest_of
from tests.tools.running_server import (
    DEMO,
    TIMEOUT_S,
    RunningServer,
    needs_demo,
    running,
    wait_until,
)

pytestmark = needs_demo

HELD = "team/held:latest"
QUESTION = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(Settings(models=tmp_path_factory.mktemp("models"), device="cpu")) as server:
        yield server


@pytest.fixture
def weights(registry: Registry) -> str:
    """The digest of weights that no store has yet: the demo model's with a byte behind them."""
    data = DEMO_FILE.read_bytes() + b"\0"
    registry.add_manifest(HELD, {"model_family": "rwkv7"}, model=data)
    return digest_of(data)


def pull_lines(server: RunningServer, name: str) -> list[dict[str, Any]]:
    return server.stream("/api/pull", model=name)


def forget(server: RunningServer, name: str, *digests: str) -> None:
    """As if it had never been pulled."""
    store = server.context.store
    store.manifest_path(ModelName.parse(name)).unlink(missing_ok=True)
    for digest in digests:
        store.blob_path(digest).unlink(missing_ok=True)


def test_a_pulled_model_answers(server: RunningServer, registry: Registry) -> None:
    name = f"{registry.host}/{DEMO_PATH}"
    with ollama.Client(host=server.url, timeout=TIMEOUT_S) as client:
        steps = list(client.pull(name, stream=True))
        assert steps[0].status == "pulling manifest"
        assert steps[-1].status == "success"
        assert any(step.digest and step.completed == step.total for step in steps)
        assert name in [model.model for model in client.list().models]
        reply = client.chat(name, QUESTION, think=False, options={"seed": 1, "temperature": 0})
        demo = client.chat(DEMO, QUESTION, think=False, options={"seed": 1, "temperature": 0})
        assert reply.message.content
        assert reply.message.content == demo.message.content
        assert client.pull(name).status == "success"


def test_a_pushed_model_comes_back_and_answers(server: RunningServer, registry: Registry) -> None:
    demo = open_model(server.context.store, ModelName.parse(DEMO))
    assert demo is not None
    name = f"{registry.host}/me/mine:1"
    manifest = demo.manifest
    server.context.store.write_manifest(ModelName.parse(name), manifest.config, manifest.layers)
    registry.blobs.clear()
    with ollama.Client(host=server.url, timeout=TIMEOUT_S) as client:
        steps = list(client.push(name, stream=True))
        assert [step.status for step in steps][-2:] == ["pushing manifest", "success"]
        forget(server, name)
        assert client.pull(name).status == "success"
        assert client.generate(name, "Hello!", think=False).response
        assert client.push(name).status == "success"


def test_how_it_is_sent(server: RunningServer, registry: Registry) -> None:
    name = f"{registry.host}/{DEMO_PATH}"
    response = server.post("/api/pull", name=name)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith('{"status":"success"}\n')
    response = server.post("/api/pull", model=name, stream=False)
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.json() == {"status": "success"}


@pytest.mark.parametrize("verb", ["pull", "push"])
@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ({}, 400, "invalid model name|model is required"),
        ({"model": "a b"}, 400, "invalid model name"),
        ({"model": "../../../etc/passwd"}, 400, "invalid model name"),
        ({"model": "ftp://127.0.0.1:1/a/b"}, 400, "invalid model name"),
        ({"model": "a:b:c/d/e"}, 400, "invalid model name"),
        ({"model": 5}, 400, "json: cannot unmarshal number into Go struct field Pu"),
        ({"model": "http://example.invalid/a/b"}, 400, "insecure protocol http: .*--insecure"),
    ],
)
def test_bad_requests(
    server: RunningServer, verb: str, body: dict[str, Any], status: int, problem: str
) -> None:
    for stream in (True, False):
        response = server.post(f"/api/{verb}", **body, stream=stream)
        assert response.status_code == status
        error = response.json()["error"]
        assert re.search(problem, error), error


def test_errors_of_a_pull(server: RunningServer, registry: Registry) -> None:
    name = f"{registry.host}/team/nothing"
    missing = {"error": "pull model manifest: file does not exist"}
    assert pull_lines(server, name) == [{"status": "pulling manifest"}, missing]
    response = server.post("/api/pull", model=name, stream=False)
    assert (response.status_code, response.json()) == (500, missing)
    registry.add_manifest("team/llama:8b", {"model_family": "llama"}, model=b"GGUF")
    response = server.post("/api/pull", model=f"{registry.host}/team/llama:8b", stream=False)
    assert response.status_code == 400
    assert 'its family is "llama"' in response.json()["error"]
    assert server.post("/api/show", model=f"{registry.host}/team/llama:8b").status_code == 404


def test_a_new_version_takes_the_old_one_out_of_memory(
    server: RunningServer, registry: Registry, weights: str
) -> None:
    name = f"{registry.host}/{HELD}"
    config: dict[str, Any] = {"model_family": "rwkv7"}
    assert pull_lines(server, name)[-1] == {"status": "success"}
    answer = server.answer("/api/generate", model=name, prompt="Hello!", keep_alive=-1)
    assert answer["response"]
    assert pull_lines(server, name)[-1] == {"status": "success"}
    running = [model["name"] for model in server.http.get("/api/ps").json()["models"]]
    assert name in running, "the same version stays"
    newer = DEMO_FILE.read_bytes() + b"\0\0"
    registry.add_manifest(HELD, config, model=newer)
    assert pull_lines(server, name)[-1] == {"status": "success"}
    wait_until(lambda: name not in server.http.get("/api/ps").text)
    assert server.answer("/api/generate", model=name, prompt="Hello!")["response"]
    forget(server, name, digest_of(newer))


def test_a_model_is_made_of_one_that_is_pulled_for_it(
    server: RunningServer, registry: Registry
) -> None:
    source, store = f"{registry.host}/{DEMO_PATH}", server.context.store
    forget(server, source)
    body: dict[str, Any] = {"model": "child", "from": source, "system": "Be kind."}
    steps = server.stream("/api/create", **body)
    said = [step["status"] for step in steps]
    assert said[0] == "pulling manifest"
    assert any(step.get("completed") for step in steps)
    assert said.count("success") == 1
    assert said[-1] == "success"
    child = open_model(store, ModelName.parse("child"))
    assert child is not None
    assert child.system == "Be kind."
    assert open_model(store, ModelName.parse(source)) is not None
    registry.seen.clear()
    assert server.post("/api/create", **body, stream=False).json() == {"status": "success"}
    assert not registry.seen, "what is here is not asked for"
    for name in ("child", source):
        forget(server, name)
    missing = {"error": "pull model manifest: file does not exist"}
    body["from"] = f"{registry.host}/team/nothing"
    assert server.stream("/api/create", **body)[-1] == missing
    response = server.post("/api/create", **body, stream=False)
    assert (response.status_code, response.json()) == (500, missing)
    assert server.post("/api/show", model="child").status_code == 404


def test_errors_of_a_push(server: RunningServer) -> None:
    lines = server.stream("/api/push", model="127.0.0.1:1/a/b")
    assert lines == [
        {"status": "retrieving manifest"},
        {"status": "couldn't retrieve manifest"},
        {"error": "model '127.0.0.1:1/a/b' not found"},
    ]
    response = server.post("/api/push", model="127.0.0.1:1/a/b", stream=False)
    assert response.status_code == 404


def test_a_client_that_leaves_ends_its_download_and_nothing_else(
    server: RunningServer, registry: Registry, weights: str
) -> None:
    name, store = f"{registry.host}/{HELD}", server.context.store
    registry.conduct.hold_after = 1 << 21
    with server.http.stream("POST", "/api/pull", json={"model": name}) as response:
        for line in response.iter_lines():
            step = json.loads(line)
            if step.get("digest") == weights and step.get("completed", 0) > 0:
                break
        assert server.post("/api/show", model=DEMO).status_code == 200
        done = step["completed"]
    partial = store.blob_path(weights).with_name(f"{store.blob_path(weights).name}-partial")
    wait_until(lambda: server.context.registry.num_users(weights) == 0)
    assert partial.is_file()
    assert server.post("/api/show", model=name).status_code == 404
    registry.conduct.go.set()
    registry.seen.clear()
    assert pull_lines(server, name)[-1] == {"status": "success"}
    (asked,) = registry.asked_for(weights)
    assert asked.range
    assert asked.range[0] >= done
    assert not partial.exists()
    forget(server, name, weights)


def test_two_clients_share_a_download(
    server: RunningServer, registry: Registry, weights: str
) -> None:
    name = f"{registry.host}/{HELD}"
    registry.conduct.hold_after = 1 << 21
    results: list[list[dict[str, Any]]] = []
    threads = [
        threading.Thread(target=lambda: results.append(pull_lines(server, name))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.context.registry.num_users(weights) == 2)
    registry.conduct.go.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert [lines[-1] for lines in results] == [{"status": "success"}] * 2
    for lines in results:
        assert any(step.get("completed") == step.get("total") for step in lines if "total" in step)
    assert len(registry.asked_for(weights)) == 1
    forget(server, name, weights)


def test_short_and_foreign_names(server: RunningServer) -> None:
    """A model that was pulled under its long name is found by the short one; hf.co shows whole."""
    store = server.context.store
    demo = open_model(store, ModelName.parse(DEMO))
    assert demo is not None
    names = ("mollysama/rwkv-7-g1:2.9b", "hf.co/someone/RWKV7-G1-GGUF:Q8_0")
    for name in names:
        store.write_manifest(ModelName.parse(name), demo.manifest.config, demo.manifest.layers)
    listed = [model["name"] for model in server.http.get("/api/tags").json()["models"]]
    assert set(names) <= set(listed)
    for asked in ("rwkv-7-g1:2.9b", "RWKV-7-G1:2.9B", *names, "HF.CO/someone/rwkv7-g1-gguf:q8_0"):
        assert server.post("/api/show", model=asked).status_code == 200
    answer = server.answer("/api/generate", model="rwkv-7-g1:2.9b", prompt="Hello!")
    assert answer["model"] == "rwkv-7-g1:2.9b"
    for name in names:
        forget(server, name)
    assert server.post("/api/show", model="rwkv-7-g1:2.9b").status_code == 404
