"""`/api/tags`, `/api/show`, `/api/ps`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from server.settings import Settings
from server.store.gguf_facts import read_all_facts
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import ModelParts, write_model
from tests.tools.running_server import DEMO, ENDLESS, RunningServer, running

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
PARTS = ModelParts(
    system='Say "yes".',
    parameters={"temperature": 0.25, "stop": ["END", "\n\n"], "top_k": 7},
    messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}),
    licenses=("MIT",),
)


@pytest.fixture(scope="module")
def custom(server: RunningServer) -> Iterator[str]:
    """A model with all parts, made from the endless one's file while the server runs."""
    store = server.context.store
    manifest = store.read_manifest(ModelName.parse(ENDLESS))
    assert manifest is not None
    layer = manifest.layers[0]
    blob = store.add_blob(store.blob_path(layer.digest))
    write_model(store, ModelName.parse("me/custom:v1"), blob, PARTS, source=f"{ENDLESS}:latest")
    yield "me/custom:v1"
    store.manifest_path(ModelName.parse("me/custom:v1")).unlink()


def tags(server: RunningServer) -> dict[str, dict[str, Any]]:
    answer = server.http.get("/api/tags").json()
    return {model["name"]: model for model in answer["models"]}


def test_tags_have_what_clients_need(server: RunningServer) -> None:
    models = tags(server)
    demo, endless = models[f"{DEMO}:latest"], models[f"{ENDLESS}:latest"]
    assert demo["model"] == demo["name"]
    assert re.fullmatch("[0-9a-f]{64}", demo["digest"])
    assert RFC3339.fullmatch(demo["modified_at"])
    assert demo["size"] > 100_000
    assert demo["capabilities"] == ["completion", "tools", "thinking"]
    assert endless["capabilities"] == ["completion"]
    details = demo["details"]
    assert (details["format"], details["family"], details["families"]) == (
        "gguf",
        "rwkv7",
        ["rwkv7"],
    )
    assert details["parent_model"] == ""
    assert re.fullmatch(r"[\d.]+[KMB]", details["parameter_size"])
    assert re.fullmatch(r"[A-Z]+\d.*", details["quantization_level"])
    assert server.http.head("/api/tags").status_code == 200


def test_tags_show_the_newest_first(server: RunningServer, custom: str) -> None:
    models = list(tags(server).values())
    assert models[0]["name"] == custom
    times = [model["modified_at"] for model in models]
    assert times == sorted(times, reverse=True)


def test_show(server: RunningServer, custom: str) -> None:
    answer = server.post("/api/show", model="ME/Custom:V1").json()
    assert answer["system"] == PARTS.system
    assert answer["license"] == "MIT"
    assert answer["messages"] == list(PARTS.messages)
    assert answer["parameters"].splitlines() == [
        "temperature                    0.25",
        'stop                           "END"',
        r'stop                           "\n\n"',
        "top_k                          7",
    ]
    assert answer["details"]["parent_model"] == f"{ENDLESS}:latest"
    assert answer["capabilities"] == ["completion"]
    assert RFC3339.fullmatch(answer["modified_at"])
    assert f"# FROM {custom}" in answer["modelfile"]
    assert "PARAMETER temperature 0.25" in answer["modelfile"]
    assert 'SYSTEM """Say "yes"."""' in answer["modelfile"] or "SYSTEM Say" in answer["modelfile"]


def test_show_has_the_models_keys_and_tensors(server: RunningServer) -> None:
    model = server.context.store
    answer = server.post("/api/show", name=ENDLESS).json()
    info = answer["model_info"]
    assert info["general.architecture"] == "rwkv7"
    assert info["rwkv7.block_count"] == 3
    assert info["tokenizer.ggml.tokens"] == []
    assert "general.name" not in info
    shapes = {tensor["name"]: tensor["shape"] for tensor in answer["tensors"]}
    assert shapes["token_embd.weight"] == [64, 257]
    assert sum(_size(shape) for shape in shapes.values()) == info["general.parameter_count"]
    verbose = server.post("/api/show", name=ENDLESS, verbose=True).json()["model_info"]
    manifest = model.read_manifest(ModelName.parse(ENDLESS))
    assert manifest is not None
    facts = read_all_facts(model.blob_path(manifest.layers[0].digest))
    assert verbose["tokenizer.ggml.tokens"] == facts.metadata["tokenizer.ggml.tokens"]


def _size(shape: list[int]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size


def test_show_takes_a_system_for_the_modelfile(server: RunningServer, custom: str) -> None:
    answer = server.post("/api/show", model=custom, system="Other.", options={"seed": 3}).json()
    assert answer["system"] == "Other."
    assert "PARAMETER seed 3" in answer["modelfile"]
    assert "seed" not in answer["parameters"]


def test_the_official_client_reads_all_of_it(client: ollama.Client, server: RunningServer) -> None:
    assert {f"{DEMO}:latest", f"{ENDLESS}:latest"} <= {each.model for each in client.list().models}
    shown = client.show(DEMO)
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo
    assert shown.details is not None
    assert shown.details.family == "rwkv7"
    server.unload_all()
    client.generate(DEMO, keep_alive="10m")
    running_models = client.ps().models
    assert [each.name for each in running_models] == [f"{DEMO}:latest"]
    server.unload_all()
    assert client.ps().models == []


def test_ps(server: RunningServer) -> None:
    server.unload_all()
    server.answer("/api/generate", model=ENDLESS, keep_alive=-1)
    server.answer("/api/generate", model=DEMO, keep_alive="1h")
    entries = server.http.get("/api/ps").json()["models"]
    assert [entry["name"] for entry in entries] == [f"{ENDLESS}:latest", f"{DEMO}:latest"]
    forever, hour = entries
    assert forever["expires_at"] > "2300"  # Go's "for ever": 292 years
    assert RFC3339.fullmatch(hour["expires_at"])
    assert hour["size"] > 0
    assert hour["size_vram"] == 0
    assert hour["context_length"] > 0
    assert hour["details"]["family"] == "rwkv7"
    assert hour["digest"] == tags(server)[f"{DEMO}:latest"]["digest"]
    server.unload_all()


def test_an_empty_store_has_only_the_demo(tmp_path: Path) -> None:
    with running(Settings(models=tmp_path / "fresh", device="cpu")) as server:
        assert set(tags(server)) <= {f"{DEMO}:latest"}


def test_a_model_made_while_the_server_runs_is_there_at_once(
    server: RunningServer, custom: str
) -> None:
    store = Store(server.context.store.root)  # as `anser create`, another process, would use it
    name = ModelName.parse("later")
    manifest = store.read_manifest(ModelName.parse(custom))
    assert manifest is not None
    store.write_manifest(name, manifest.config, manifest.layers)
    assert "later:latest" in tags(server)
    store.manifest_path(name).unlink()
    assert "later:latest" not in tags(server)
    assert server.post("/api/show", model="later").status_code == 404
