"""The store on disk: Ollama's layout, complete files or none, no way out of the folder."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import threading
from pathlib import Path

import pytest

from server.store.demo_model import DEMO_NAME, ensure_demo_model
from server.store.manifests import MODEL_TYPE, DamagedModelError
from server.store.names import ModelName
from server.store.store import Blob, Store, StoreError
from server.store.stored_model import (
    ForeignModelError,
    ModelParts,
    StoredModel,
    list_models,
    open_model,
    write_model,
)
from tests.tools.server_models import write_endless_gguf

NAME = ModelName.parse("small")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_endless_gguf(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def add(store: Store, gguf: Path, name: ModelName = NAME, parts: ModelParts | None = None) -> Blob:
    blob = store.add_blob(gguf)
    write_model(store, name, blob, parts or ModelParts())
    return blob


def opened(store: Store, name: ModelName = NAME) -> StoredModel:
    model = open_model(store, name)
    assert model is not None
    return model


def files(store: Store) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()}


def test_the_layout_is_ollamas(store: Store, gguf: Path) -> None:
    blob = add(store, gguf, parts=ModelParts(system="Be kind.", parameters={"top_k": 3}))
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert blob.digest == f"sha256:{digest}"
    assert (store.root / "blobs" / f"sha256-{digest}").read_bytes() == gguf.read_bytes()
    path = store.root / "manifests" / "registry.ollama.ai" / "library" / "small" / "latest"
    manifest = json.loads(path.read_text())
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert [layer["mediaType"].rsplit(".", 1)[-1] for layer in manifest["layers"]] == [
        "model", "system", "params",
    ]  # fmt: skip
    config_blob = manifest["config"]["digest"].replace(":", "-")
    config = json.loads((store.root / "blobs" / config_blob).read_text())
    assert config["model_family"] == "rwkv7"
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    # Nothing else lies around, and everybody may read what is there.
    assert len(files(store)) == 1 + 1 + len(manifest["layers"])
    assert path.stat().st_mode & 0o444 == 0o444
    assert store.blob_path(blob.digest).stat().st_mode & 0o444 == 0o444


def test_what_was_written_is_read_again(store: Store, gguf: Path) -> None:
    parts = ModelParts(
        system="You are \u201cgood\u201d.",
        parameters={"temperature": 0.5, "stop": ["\n", "END"]},
        messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}),
        licenses=("MIT", "Apache"),
    )
    add(store, gguf, parts=parts)
    model = opened(store)
    assert (model.system, model.parameters, model.licenses) == (
        parts.system, parts.parameters, parts.licenses,
    )  # fmt: skip
    assert [(each.role, each.content) for each in model.messages] == [
        ("user", "hi"), ("assistant", "hello"),
    ]  # fmt: skip
    assert model.manifest.size == sum(
        path.stat().st_size for path in (store.root / "blobs").iterdir()
    )


def test_names_are_found_in_any_case_and_registered_once(store: Store, gguf: Path) -> None:
    add(store, gguf, ModelName.parse("User/Small:Q4"))
    model = opened(store, ModelName.parse("uSER/small:q4"))
    assert model.name.shortest == "User/Small:Q4"
    add(store, gguf, ModelName.parse("user/SMALL:q4"), ModelParts(system="new"))
    assert [each.name.shortest for each in list_models(store)] == ["User/Small:Q4"]
    assert opened(store, ModelName.parse("user/small:q4")).system == "new"


def test_a_blob_is_complete_or_not_there(store: Store) -> None:
    class Breaking(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _: object) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(StoreError, match="Input/output error"):
        store.add_blob(io.BufferedReader(Breaking()))
    with pytest.raises(StoreError, match="digest mismatch, expected"):
        store.add_blob(b"text", expected_digest="sha256:" + "0" * 64)
    assert files(store) == set()
    first, second = store.add_blob(b"text"), store.add_blob(b"text")
    assert (first.is_new, second.is_new) == (True, False)
    # A damaged blob is healed by adding it again.
    store.blob_path(first.digest).write_bytes(b"tex?")
    store.add_blob(b"text")
    assert store.blob_path(first.digest).read_bytes() == b"text"


def test_a_digest_does_not_lead_out_of_the_store(store: Store) -> None:
    for digest in (
        "sha256:../../x",
        "sha256:" + "g" * 64,
        "md5:" + "0" * 64,
        "",
        "../../etc/passwd",
    ):
        with pytest.raises(DamagedModelError, match="invalid digest format"):
            store.blob_path(digest)
    assert store.blob_path("sha256-" + "A" * 64).name == "sha256-" + "a" * 64


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"layers": []}', b'{"config": {"digest": 5}}',
        b'{"config": {"mediaType": "x", "digest": "sha256:../../../etc/passwd", "size": 1}}',
        b'{"config": {"mediaType": "x", "digest": "sha256:' + b"0" * 64 + b'", "size": 1}}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_skipped_with_one_warning(
    store: Store, gguf: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    add(store, gguf)
    bad = store.manifest_path(ModelName.parse("bad"))
    bad.parent.mkdir(parents=True)
    bad.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [each.name.shortest for each in list_models(store)] == ["small:latest"]
    assert len(caplog.records) == 1
    assert str(bad) in caplog.text
    with pytest.raises(DamagedModelError, match="bad:latest"):
        open_model(store, ModelName.parse("bad"))


def test_strange_files_among_the_manifests(store: Store, gguf: Path) -> None:
    add(store, gguf)
    folder = store.root / "manifests" / "registry.ollama.ai" / "library"
    (folder / ".DS_Store").write_text("x")
    (folder / "small" / ".hidden").write_text("x")
    (folder / "small" / "folder").mkdir()
    assert [each.name.shortest for each in list_models(store)] == ["small:latest"]
    assert open_model(store, ModelName.parse("small:folder")) is None
    assert open_model(store, ModelName.parse("library/other")) is None


def test_models_of_other_families_are_not_listed(store: Store, gguf: Path) -> None:
    """As in a store that Ollama wrote: a llama with its config, and an old manifest without one."""
    add(store, gguf)
    manifest = opened(store).manifest
    config = store.add_blob(json.dumps({"model_family": "llama"}).encode()).as_layer("config")
    llama = ModelName.parse("llama3")
    store.write_manifest(llama, config, manifest.layers)
    nameless = store.add_blob(b"{}").as_layer("config")
    store.write_manifest(ModelName.parse("nameless"), nameless, manifest.layers)
    text = store.add_blob(b"no GGUF at all").as_layer(MODEL_TYPE)
    store.write_manifest(ModelName.parse("text"), nameless, (text,))
    store.write_manifest(ModelName.parse("remote"), nameless, ())
    assert {each.name.shortest for each in list_models(store)} == {
        "small:latest",
        "nameless:latest",
    }
    with pytest.raises(ForeignModelError, match='its family is "llama"'):
        open_model(store, llama)


def test_a_model_without_its_file_is_damaged(store: Store, gguf: Path) -> None:
    blob = add(store, gguf)
    store.blob_path(blob.digest).write_bytes(gguf.read_bytes()[:1000])
    with pytest.raises(DamagedModelError, match="small:latest"):
        open_model(store, NAME)
    store.blob_path(blob.digest).unlink()
    with pytest.raises(DamagedModelError, match="is missing"):
        open_model(store, NAME)
    assert list_models(store) == []


def test_readers_never_see_half_a_manifest(store: Store, gguf: Path) -> None:
    """One thread writes the same name over and over while another reads it."""
    add(store, gguf)
    manifest = opened(store).manifest
    is_done = threading.Event()
    problems: list[Exception] = []

    def read() -> None:
        while not is_done.is_set():
            try:
                assert store.read_manifest(NAME) is not None
            except Exception as error:  # reported by the test itself
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        store.write_manifest(NAME, manifest.config, manifest.layers)
    is_done.set()
    reader.join()
    assert problems == []


def test_leftovers_of_a_killed_process_go_after_a_day(store: Store) -> None:
    old, new = store.temporary_file(), store.temporary_file()
    begun = old.with_name(f".{old.name}.0123abcd.partial")  # by the GGUF writer, beside `old`
    begun.touch()
    for path in (old, begun):
        os.utime(path, (0, 0))
    store.remove_leftovers()
    assert (old.exists(), begun.exists(), new.exists()) == (False, False, True)


def test_the_demo_model_is_put_there_once(store: Store, gguf: Path) -> None:
    assert ensure_demo_model(store, gguf)
    before = files(store)
    modified = opened(store, DEMO_NAME).manifest.modified_ns
    assert ensure_demo_model(store, gguf)
    assert files(store) == before
    assert opened(store, DEMO_NAME).manifest.modified_ns == modified
    assert not ensure_demo_model(store, gguf.with_name("missing.gguf"))


def test_the_demo_model_is_put_back_when_damaged_or_old(
    store: Store, gguf: Path, tmp_path: Path
) -> None:
    ensure_demo_model(store, gguf)
    layer = opened(store, DEMO_NAME).manifest.layer(MODEL_TYPE)
    assert layer is not None
    store.blob_path(layer.digest).write_bytes(b"GGUF, or not")
    assert ensure_demo_model(store, gguf)
    assert opened(store, DEMO_NAME).path.read_bytes() == gguf.read_bytes()
    newer = tmp_path / "newer.gguf"
    write_endless_gguf(newer, seed=1)
    assert ensure_demo_model(store, newer)
    assert opened(store, DEMO_NAME).path.read_bytes() == newer.read_bytes()


def test_a_users_own_model_of_that_name_stays(store: Store, gguf: Path, tmp_path: Path) -> None:
    add(store, gguf, DEMO_NAME, ModelParts(system="mine"))
    newer = tmp_path / "newer.gguf"
    write_endless_gguf(newer, seed=1)
    assert ensure_demo_model(store, newer)
    assert opened(store, DEMO_NAME).system == "mine"


def test_a_store_that_cannot_be_written_is_one_warning(
    gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert not ensure_demo_model(Store(tmp_path / "file"), gguf)
    assert len(caplog.records) == 1
    assert "OLLAMA_MODELS" in caplog.text
