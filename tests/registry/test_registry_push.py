"""Pushes to a real little registry, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rwkv_core.errors import AnserError
from server.registry.errors import RegistryError, UnauthorizedError
from server.store.demo_model import DEMO_FILE, ensure_demo_model
from server.store.manifests import DamagedModelError, Layer, Manifest
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import open_model
from tests.tools.registry import Conduct, Registry
from tests.tools.running_server import needs_demo
from tests.tools.transfers import QUICK, Json, pull_once, push_once

pytestmark = needs_demo


@pytest.fixture
def empty(registry: Registry) -> Registry:
    """A registry without models."""
    registry.blobs.clear()
    registry.manifests.clear()
    return registry


def mine(store: Store, registry: Registry, model: str = "mine:1") -> str:
    """The demo model under a name of that registry."""
    assert ensure_demo_model(store)
    demo = open_model(store, ModelName.parse("rwkv7-demo"))
    assert demo is not None
    name = f"{registry.host}/team/{model}"
    store.write_manifest(ModelName.parse(name), demo.manifest.config, demo.manifest.layers)
    return name


def manifest_of(store: Store, name: str) -> Manifest:
    model = open_model(store, ModelName.parse(name))
    assert model is not None
    return model.manifest


def layers_of(store: Store, name: str) -> list[Layer]:
    """In the order in which they are sent."""
    manifest = manifest_of(store, name)
    return [*manifest.layers, manifest.config]


def statuses(objects: list[Json]) -> list[str]:
    return list(dict.fromkeys(each["status"] for each in objects))


def assert_pushed(store: Store, registry: Registry, name: str) -> None:
    path = name.partition("/")[2]
    assert registry.manifests[path] == store.manifest_path(ModelName.parse(name)).read_bytes()
    for layer in layers_of(store, name):
        assert registry.blobs[layer.digest] == store.blob_path(layer.digest).read_bytes()


def test_a_push_and_a_pull_of_it(store: Store, empty: Registry, tmp_path: Path) -> None:
    name = mine(store, empty)
    objects = push_once(store, name)
    assert_pushed(store, empty, name)
    layers = layers_of(store, name)
    pushed = [f"pushing {layer.digest[7:19]}" for layer in layers]
    assert statuses(objects) == ["retrieving manifest", *pushed, "pushing manifest", "success"]
    for layer in layers:
        counts = [
            each.get("completed", 0) for each in objects if each.get("digest") == layer.digest
        ]
        assert counts == sorted(counts)
        assert counts[-1] == layer.size
    chunks = [each for each in empty.seen if each.method == "PATCH"]
    assert len(chunks) == 4 + len(layers) - 1
    other = Store(tmp_path / "other")
    pull_once(other, name)
    assert manifest_of(other, name).digest == manifest_of(store, name).digest


def test_what_is_there_is_not_sent(store: Store, empty: Registry) -> None:
    name = mine(store, empty)
    push_once(store, name)
    empty.seen.clear()
    objects = push_once(store, name.upper().replace("TEAM", "team"))
    assert statuses(objects)[-1] == "success"
    assert not [each for each in empty.seen if each.method in ("POST", "PATCH")]


def test_a_blob_of_another_model_is_mounted(store: Store, empty: Registry) -> None:
    name = mine(store, empty)
    manifest = manifest_of(store, name)
    layers = tuple(replace(each, source="team/first:1") for each in manifest.layers)
    store.write_manifest(ModelName.parse(name), manifest.config, layers)
    push_once(store, name)
    asked = [each.path for each in empty.seen if each.method == "POST"]
    assert any(f"mount=sha256%3A{layers[0].digest[7:]}&from=team%2Ffirst" in each for each in asked)
    assert_pushed(store, empty, name)


def test_chunks_go_to_an_object_store_without_the_token(
    store: Store, empty: Registry, storage: Registry
) -> None:
    empty.conduct.token = "open sesame"
    empty.conduct.redirects_uploads = True
    storage.uploads = empty.uploads
    name = mine(store, empty)
    push_once(store, name)
    assert_pushed(store, empty, name)
    sent = [each for each in storage.seen if each.method == "PUT"]
    assert len(sent) >= 4
    assert all("authorization" not in each.headers for each in sent)
    asked = [each for each in empty.seen if each.method == "PATCH"]
    assert all(each.headers["authorization"] == "Bearer open sesame" for each in asked)


def test_an_upload_that_is_forgotten_is_begun_anew(store: Store, empty: Registry) -> None:
    empty.conduct.forgets_uploads = 2
    name = mine(store, empty)
    push_once(store, name)
    assert_pushed(store, empty, name)


def forget_for_ever(conduct: Conduct) -> None:
    conduct.forgets_uploads = 10**6


def deny(conduct: Conduct) -> None:
    conduct.denies = True


@pytest.mark.parametrize(
    ("behave", "kind", "problem"),
    [
        (forget_for_ever, RegistryError, "forgets uploads before they are done"),
        (deny, UnauthorizedError, "unauthorized: access denied .* namespace of your own"),
    ],
)
def test_a_registry_that_does_not_take_it(
    store: Store,
    empty: Registry,
    behave: Callable[[Conduct], None],
    kind: type[AnserError],
    problem: str,
) -> None:
    behave(empty.conduct)
    with pytest.raises(kind, match=problem):
        push_once(store, mine(store, empty))
    assert empty.manifests == {}


def test_a_model_that_is_not_whole(store: Store, empty: Registry) -> None:
    name = mine(store, empty)
    weights = manifest_of(store, name).layers[0]
    path = store.blob_path(weights.digest)
    path.write_bytes(DEMO_FILE.read_bytes()[:-1])
    with pytest.raises(DamagedModelError, match="has another size than it should"):
        push_once(store, name)
    path.unlink()
    with pytest.raises(DamagedModelError, match="No such file"):
        push_once(store, name)
    assert empty.seen == []


def test_a_model_that_is_not_there(store: Store, empty: Registry) -> None:
    with pytest.raises(AnserError, match=f"model '{empty.host}/a/b' not found"):
        push_once(store, f"{empty.host}/a/b")


def test_no_registry_there(store: Store, empty: Registry) -> None:
    name = mine(store, empty)
    gone = name.replace(empty.host, "127.0.0.1:1")
    manifest = manifest_of(store, name)
    store.write_manifest(ModelName.parse(gone), manifest.config, manifest.layers)
    with pytest.raises(RegistryError, match=r"cannot reach 127.0.0.1:1 \("):
        push_once(store, gone, limits=replace(QUICK, num_attempts=2))


def test_the_manifest_goes_last(store: Store, empty: Registry) -> None:
    name = mine(store, empty)
    push_once(store, name)
    assert json.loads(empty.manifests["team/mine:1"])["schemaVersion"] == 2
    last = empty.seen[-1]
    assert (last.method, last.path) == ("PUT", "/v2/team/mine/manifests/1")
    assert last.headers["content-type"].endswith("manifest.v2+json")
