"""Registries that contradict themselves: one clear error, and nothing of theirs is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rwkv_core.errors import AnserError
from server.store.demo_model import DEMO_FILE
from server.store.manifests import MODEL_TYPE
from server.store.store import Store
from tests.tools.registry import DEMO_PATH as PATH
from tests.tools.registry import Registry, digest_of
from tests.tools.running_server import needs_demo
from tests.tools.transfers import pull_once

pytestmark = needs_demo


def change(**changes: Any) -> Callable[[Registry], None]:
    def apply(registry: Registry) -> None:
        for name, value in changes.items():
            setattr(registry.conduct, name, value)

    return apply


def resize(registry: Registry, size: int, which: str = MODEL_TYPE) -> None:
    manifest = json.loads(registry.manifests[PATH])
    for layer in (manifest["config"], *manifest["layers"]):
        if layer["mediaType"] == which:
            layer["size"] = size
    registry.manifests[PATH] = json.dumps(manifest).encode()


LIES: dict[str, tuple[Callable[[Registry], None], str]] = {
    "other bytes": (change(corrupts=True), "sent damaged data: digest mismatch, expected"),
    "announces more": (change(announces=1 << 40), "has 1099511627776 bytes where the manifest"),
    "announces less": (change(announces=5), "has 5 bytes where the manifest says"),
    "more without ranges": (
        change(announces=1 << 40, ignores_ranges=True),
        "has 1099511627776 bytes where the manifest",
    ),
    "short": (change(sends_short=True), "max retries exceeded: .* ends early"),
    "surplus": (change(sends_surplus=True), "sends more than the manifest says"),
    "manifest says more": (
        lambda registry: resize(registry, 10**7),
        "answers 416|has .* bytes where the manifest says 10000000|another part",
    ),
    "manifest says less": (lambda registry: resize(registry, 10**6), "bytes where the manifest"),
    "manifest says none": (lambda registry: resize(registry, 0), "digest mismatch"),
    "negative": (lambda registry: resize(registry, -1), "the size -1"),
    "absurd": (lambda registry: resize(registry, 1 << 70), "the size 1180591620717411303424"),
    "too large for any disk": (lambda registry: resize(registry, 1 << 55), "not enough disk space"),
    "huge manifest": (change(manifest_mb=100), "pull model manifest: .* sends more than 4194304"),
    "no manifest": (change(manifest=b"<html>"), "pull model manifest: not a manifest"),
    "nothing in it": (change(manifest=b"{}"), "pull model manifest: not a manifest"),
    "deep": (change(manifest=b"[" * 100_000), "pull model manifest: not a manifest"),
    "a way out": (
        change(
            manifest=json.dumps(
                {"config": {"mediaType": "a", "digest": "sha256:../../x", "size": 1}}
            ).encode()
        ),
        "pull model manifest: invalid digest format",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_registry(store: Store, registry: Registry, lie: str) -> None:
    apply, problem = LIES[lie]
    apply(registry)
    with pytest.raises(AnserError, match=problem) as caught:
        pull_once(store, f"{registry.host}/{PATH}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert list(store.names()) == []
    model = store.blob_path(digest_of(DEMO_FILE.read_bytes()))
    assert not model.exists()
    if lie != "short":  # which is no different from a broken connection
        assert list((store.root / "blobs").glob(f"{model.name}*")) == []
