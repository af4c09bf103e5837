"""`/api/copy` and `/api/delete` on a real server, also while the model is in use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.settings import Settings
from server.store.names import ModelName
from server.store.stored_model import ModelParts, StoredModel, open_model, write_model
from tests.tools.running_server import RunningServer, running, wait_until
from tests.tools.server_models import add_endless_model, write_endless_gguf

BASE, OTHER = "me/base:v1", "other"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """One with a store of its own, in which `base` and `other` are, of different weights."""
    with running(Settings(models=tmp_path / "models", device="cpu")) as server:
        store = server.context.store
        add_endless_model(store, BASE, tmp_path, ModelParts(system="I am the base."))
        write_endless_gguf(tmp_path / "other.gguf", seed=5)
        write_model(
            store,
            ModelName.parse(OTHER),
            store.add_blob(tmp_path / "other.gguf"),
            ModelParts(licenses=("MIT",)),
        )
        yield server


def opened(server: RunningServer, name: str) -> StoredModel:
    model = open_model(server.context.store, ModelName.parse(name))
    assert model is not None
    return model


def names(server: RunningServer) -> set[str]:
    models = server.http.get("/api/tags").json()["models"]
    return {each["name"] for each in models if "demo" not in each["name"]}


def delete(server: RunningServer, **body: object) -> tuple[int, str]:
    answer = server.http.request("DELETE", "/api/delete", json=body)
    return answer.status_code, answer.text


def has_all(server: RunningServer, model: StoredModel) -> list[bool]:
    manifest = model.manifest
    return [
        server.context.store.has_blob(each.digest) for each in (*manifest.layers, manifest.config)
    ]


def test_a_copy_is_the_same_model(server: RunningServer) -> None:
    answer = server.post("/api/copy", source="ME/Base:V1", destination="Copy")
    assert (answer.status_code, answer.text) == (200, "")
    one, two = opened(server, BASE), opened(server, "copy")
    assert two.name.shortest == "Copy:latest"
    assert (two.manifest.digest, two.path) == (one.manifest.digest, one.path)
    assert server.post("/api/copy", source="copy", destination="COPY").status_code == 200
    assert names(server) == {BASE, "Copy:latest", "other:latest"}


def test_a_copy_over_another_model_takes_its_place(server: RunningServer) -> None:
    old = opened(server, OTHER)
    server.answer("/api/generate", model=OTHER, prompt="hi", options={"num_predict": 1})
    assert server.post("/api/copy", source=BASE, destination="Other").status_code == 200
    assert opened(server, OTHER).system == "I am the base."
    assert not any(has_all(server, old))
    wait_until(lambda: not server.context.manager.loaded())


def test_copies_that_cannot_be_made(server: RunningServer) -> None:
    for body, code, problem in (
        ({"source": "../x", "destination": "y"}, 400, 'source "../x" is invalid'),
        ({"destination": "y"}, 400, 'source "" is invalid'),
        ({"source": BASE, "destination": "a/../../b"}, 400, 'destination "a/../../b" is invalid'),
        ({"source": BASE}, 400, 'destination "" is invalid'),
        ({"source": "nobody", "destination": "y"}, 404, 'model "nobody" not found'),
        ({"source": 5}, 400, "json: cannot unmarshal number into Go struct field "
         "CopyRequest.source of type string"),
    ):  # fmt: skip
        answer = server.post("/api/copy", **body)
        assert (answer.status_code, answer.json()) == (code, {"error": problem})
    answer = server.http.post("/api/copy")
    assert (answer.status_code, answer.json()) == (400, {"error": "missing request body"})
    assert names(server) == {BASE, "other:latest"}


def test_blobs_go_with_the_last_model_that_has_them(server: RunningServer) -> None:
    server.post("/api/copy", source=BASE, destination="copy")
    base = opened(server, BASE)
    assert delete(server, model="ME/base:v1") == (200, "")
    assert names(server) == {"copy:latest", "other:latest"}
    assert all(has_all(server, base))
    assert delete(server, name="copy") == (200, "")
    assert not any(has_all(server, base))
    assert names(server) == {"other:latest"}
    folder = server.context.store.root / "manifests" / "registry.ollama.ai"
    assert not (folder / "me").exists(), "folders that are empty go"
    assert all(has_all(server, opened(server, OTHER)))


def test_deletions_that_cannot_be_made(server: RunningServer) -> None:
    for body, code, problem in (
        ({"model": "nobody"}, 404, "model 'nobody' not found"),
        ({"model": "other:v9"}, 404, "model 'other:v9' not found"),
        ({"model": "../../blobs"}, 400, 'name "../../blobs" is invalid'),
        ({}, 400, "model is required"),
        ({"model": ["x"]}, 400, "json: cannot unmarshal array into Go struct field "
         "DeleteRequest.model of type string"),
    ):  # fmt: skip
        code_seen, text = delete(server, **body)
        assert (code_seen, json.loads(text)) == (code, {"error": problem})
    assert server.post("/api/delete", model=OTHER).status_code == 405
    assert names(server) == {BASE, "other:latest"}


def test_a_damaged_model_can_be_deleted(server: RunningServer) -> None:
    store = server.context.store
    path = store.manifest_path(ModelName.parse("bad"))
    path.parent.mkdir(parents=True)
    text = store.add_blob(b"of the damaged one").digest
    path.write_text('{"layers": [' + f'"{text}"')
    assert delete(server, model="bad") == (200, "")
    assert not path.exists()
    assert not store.has_blob(text)


def test_a_running_reply_goes_on_when_its_model_is_deleted(server: RunningServer) -> None:
    path = opened(server, OTHER).path
    body = {"model": OTHER, "prompt": "hi", "options": {"num_predict": 400}}
    with server.http.stream("POST", "/api/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert delete(server, model=OTHER) == (200, "")
        assert not path.exists()
        assert server.post("/api/generate", model=OTHER, prompt="x").status_code == 404
        last = json.loads(list(lines)[-1])
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 400)
    wait_until(lambda: not server.context.manager.loaded())
    assert server.http.get("/api/ps").json() == {"models": []}


def test_a_copy_serves_on_when_the_name_it_was_made_from_is_deleted(server: RunningServer) -> None:
    server.post("/api/copy", source=OTHER, destination="copy")
    first = server.answer("/api/generate", model=OTHER, prompt="hi", options={"num_predict": 3})
    assert delete(server, model=OTHER) == (200, "")
    options = {"num_predict": 3, "seed": 1}
    again = server.answer("/api/generate", model="copy", prompt="hi", options=options)
    assert again["eval_count"] == first["eval_count"] == 3
    assert [each["name"] for each in server.http.get("/api/ps").json()["models"]] == ["copy:latest"]


def test_what_copilot_shows_is_the_name_that_was_asked_for(server: RunningServer) -> None:
    headers = {"user-agent": "GitHubCopilotChat/0.40"}
    answer = server.http.post("/api/show", json={"model": "OTHER"}, headers=headers).json()
    assert answer["model_info"]["general.basename"] == "OTHER"
