"""A store that Ollama wrote is served as it is: byte for byte its layout, in a folder beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from server.settings import Settings
from tests.tools.running_server import running
from tests.tools.server_models import write_endless_gguf

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
IMAGE = "application/vnd.ollama.image."
TEMPLATE = "{{- range .Messages }}{{ .Role }}: {{ .Content }}\n\n{{ end }}Assistant:"
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


class OllamaStore:
    """Writes files as Ollama's `manifest` package does: nothing of Anser's is used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True)

    def layer(self, kind: str, data: bytes, **more: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.root / "blobs" / f"sha256-{digest}").write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data), **more}

    def json_layer(self, kind: str, value: Any) -> dict[str, Any]:
        return self.layer(kind, json.dumps(value, separators=(",", ":")).encode() + b"\n")

    def model(self, path: str, family: str, *layers: dict[str, Any], **more: Any) -> None:
        config = {
            "model_format": "gguf",
            "model_family": family,
            "model_families": [family],
            "model_type": "2.9B",
            "file_type": "Q8_0",
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.json_layer(CONFIG, config | more),
            "layers": list(layers),
        }
        file = self.root / "manifests" / path
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(manifest, separators=(",", ":")) + "\n")


@pytest.fixture
def store(tmp_path: Path) -> OllamaStore:
    """An RWKV-7 model of a user with everything; one pulled from elsewhere; a llama; a remote."""
    write_endless_gguf(tmp_path / "model.gguf", name="RWKV7 World")
    weights = (tmp_path / "model.gguf").read_bytes()
    store = OllamaStore(tmp_path / "models")
    store.model(
        "registry.ollama.ai/mollysama/rwkv-7-g1/2.9b",
        "rwkv7",
        store.layer(IMAGE + "model", weights, **{"from": "/tmp/rwkv7.gguf"}),
        store.layer(IMAGE + "template", TEMPLATE.encode()),
        store.layer(IMAGE + "system", b"Be brief."),
        store.json_layer(IMAGE + "params", {"stop": ["\n\nUser:"], "temperature": 1}),
        store.json_layer(IMAGE + "messages", MESSAGES),
        store.layer(IMAGE + "license", b"Apache License"),
        store.layer(IMAGE + "license", b"Second License"),
        store.layer(IMAGE + "projector", b"GGUF of something that nobody reads"),
        requires="0.11.0",
    )
    store.model("hf.co/BlinkDL/rwkv7-g1/Q8_0", "", store.layer(IMAGE + "model", weights),
                model_type=5, file_type=[7])  # fmt: skip
    store.model("registry.ollama.ai/library/llama3/latest", "llama",
                store.layer(IMAGE + "model", b"GGUF\x03" + bytes(100)))  # fmt: skip
    store.model("registry.ollama.ai/library/gpt-oss/20b-cloud", "", remote_host="https://x.com")
    return store


def snapshot(store: OllamaStore) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(store.root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in store.root.rglob("*")
        if path.is_file() and "demo" not in str(path)
    }


def changed(store: OllamaStore, before: dict[str, tuple[str, int]]) -> bool:
    """Whether a file is gone or another; the demo model's are added at every start."""
    after = snapshot(store)
    return any(after.get(path) != value for path, value in before.items())


def test_its_rwkv_models_are_served(store: OllamaStore) -> None:
    before = snapshot(store)
    with running(Settings(models=store.root, device="cpu")) as server:
        models = {each["name"]: each for each in server.http.get("/api/tags").json()["models"]}
        names = {name for name in models if "demo" not in name}
        assert names == {"mollysama/rwkv-7-g1:2.9b", "hf.co/BlinkDL/rwkv7-g1:Q8_0"}
        ours = models["mollysama/rwkv-7-g1:2.9b"]
        manifest = store.root / "manifests/registry.ollama.ai/mollysama/rwkv-7-g1/2.9b"
        assert ours["digest"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
        assert ours["details"]["parameter_size"] == "2.9B"
        assert ours["details"]["quantization_level"] == "Q8_0"
        strange = models["hf.co/BlinkDL/rwkv7-g1:Q8_0"]["details"]  # clients insist on text
        assert (strange["parameter_size"][-1], strange["quantization_level"]) == ("K", "F32")
        shown = server.post("/api/show", model="mollysama/rwkv-7-g1:2.9b").json()
        assert shown["template"] == TEMPLATE
        assert shown["system"] == "Be brief."
        assert shown["messages"] == MESSAGES
        assert shown["license"] == "Apache License\nSecond License"
        assert shown["requires"] == "0.11.0"
        assert shown["parameters"].splitlines() == [
            'stop                           "\\n\\nUser:"',
            "temperature                    1",
        ]
        for name in names:
            answer = server.answer("/api/chat", model=name, options={"num_predict": 2},
                                   messages=[{"role": "user", "content": "Hi"}])  # fmt: skip
            assert answer["done_reason"] == "length"
        assert server.post("/api/show", model="llama3").status_code == 400
        assert not changed(store, before)


def test_a_model_of_another_family_can_be_copied_and_deleted(store: OllamaStore) -> None:
    """As Ollama would: the files are its own."""
    with running(Settings(models=store.root, device="cpu")) as server:
        assert server.post("/api/copy", source="llama3", destination="mine").status_code == 200
        for name in ("llama3", "mine"):
            answer = server.http.request("DELETE", "/api/delete", json={"model": name})
            assert answer.status_code == 200
        assert not any(path.stat().st_size == 105 for path in (store.root / "blobs").iterdir()), (
            "the llama's file is gone"
        )


def test_a_child_of_its_model_keeps_what_ollama_needs(store: OllamaStore) -> None:
    with running(Settings(models=store.root, device="cpu")) as server:
        body = {"model": "child", "from": "mollysama/rwkv-7-g1:2.9b", "system": "Mine."}
        assert server.answer("/api/create", **body) == {"status": "success"}
        shown = server.post("/api/show", model="child").json()
    assert (shown["template"], shown["requires"]) == (TEMPLATE, "0.11.0")
    file = store.root / "manifests/registry.ollama.ai/library/child/latest"
    manifest = json.loads(file.read_text())
    assert manifest["mediaType"] == MANIFEST
    kinds = [each["mediaType"].removeprefix(IMAGE) for each in manifest["layers"]]
    assert kinds == ["model", "template", "system", "params", "messages", "license", "license"]
    config = store.root / "blobs" / manifest["config"]["digest"].replace(":", "-")
    assert json.loads(config.read_text())["model_family"] == "rwkv7"
