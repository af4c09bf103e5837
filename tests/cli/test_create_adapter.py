"""ADAPTER in a Modelfile and `anser create --adapter`: tuned initial states in the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rwkv_core.errors import AnserError
from rwkv_core.initial_state import encode_initial_state, read_initial_state
from server.creating.create import create_model
from server.creating.modelfile import parse_modelfile
from server.store.manifests import ADAPTER_TYPE, DamagedModelError
from server.store.names import ModelName
from server.store.show import show_json
from server.store.store import Store
from server.store.stored_model import ForeignModelError, StoredModel, list_models, open_model
from tests.tools.anser_command import Anser
from tests.tools.gguf_files import SMALL
from tests.tools.time_states import time_state, write_time_state


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return write_time_state(tmp_path / "tuned.pth", time_state(SMALL))


def make(store: Store, text: str, name: str = "new", folder: Path = Path()) -> StoredModel:
    create_model(store, ModelName.parse(name), parse_modelfile(text), folder, lambda *_: None)
    model = open_model(store, ModelName.parse(name))
    assert model is not None
    return model


def blobs(store: Store) -> set[str]:
    folder = store.root / "blobs"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def same_state(model: StoredModel, file: Path) -> bool:
    """Whether a stored model begins at the state in a file."""
    assert model.adapter is not None
    states = (read_initial_state(path, SMALL) for path in (model.adapter, file))
    one, other = map(encode_initial_state, states)
    return one == other


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_adapter_becomes_a_layer(
    store: Store, endless_file: Path, tmp_path: Path, suffix: str
) -> None:
    file = write_time_state(tmp_path / f"tuned{suffix}", time_state(SMALL))
    model = make(store, f"FROM {endless_file}\nADAPTER {file.name}\n", folder=tmp_path)
    layer = model.manifest.layer(ADAPTER_TYPE)
    assert layer is not None
    assert model.adapter == store.blob_path(layer.digest)
    assert model.adapter.read_bytes()[8:9] == b"{", "a pickle is not for the store"
    assert layer.size == model.adapter.stat().st_size
    assert same_state(model, file)
    plain = make(store, f"FROM {endless_file}\n", "plain")
    assert plain.adapter is None
    assert plain.path == model.path


def test_equal_states_are_stored_once(store: Store, endless_file: Path, tmp_path: Path) -> None:
    adapters = set()
    for suffix in (".pth", ".safetensors"):
        file = write_time_state(tmp_path / f"tuned{suffix}", time_state(SMALL))
        adapters.add(make(store, f"FROM {endless_file}\nADAPTER {file}\n").adapter)
    assert len(adapters) == 1


def test_from_a_name_inherits_the_state(
    store: Store, endless_file: Path, tuned: Path, tmp_path: Path
) -> None:
    parent = make(store, f"FROM {endless_file}\nADAPTER {tuned}\n", "parent")
    child = make(store, "FROM parent\nSYSTEM Be brief.\n", "child")
    assert child.adapter == parent.adapter
    other = write_time_state(tmp_path / "other.pth", time_state(SMALL, seed=1))
    grandchild = make(store, f"FROM child\nADAPTER {other}\n", "grandchild")
    assert grandchild.system == "Be brief."
    assert same_state(grandchild, other)
    assert len(grandchild.manifest.all(ADAPTER_TYPE)) == 1
    smaller = ModelName.parse("smaller")
    modelfile = parse_modelfile("FROM child\n")
    create_model(store, smaller, modelfile, Path(), lambda *_: None, quantize="q8_0")
    quantized = open_model(store, smaller)
    assert quantized is not None
    assert (quantized.quantization, quantized.adapter) == ("Q8_0", parent.adapter)


def test_what_show_says_makes_the_same_model(store: Store, endless_file: Path, tuned: Path) -> None:
    text = f"FROM {endless_file}\nADAPTER {tuned}\nSYSTEM Be brief.\n"
    model = make(store, text)
    shown = show_json(model)["modelfile"]
    assert f"\nFROM {model.path}\nADAPTER {model.adapter}\n" in shown
    again = make(store, shown, "again")
    assert [layer.digest for layer in again.manifest.layers] == [
        layer.digest for layer in model.manifest.layers
    ]
    plain = make(store, f"FROM {endless_file}\n", "plain")
    assert "ADAPTER" not in show_json(plain)["modelfile"]


def test_what_is_no_state_of_the_model_is_refused(
    store: Store, endless_file: Path, tmp_path: Path
) -> None:
    other = replace(SMALL, n_layer=SMALL.n_layer + 1)
    write_time_state(tmp_path / "other.pth", time_state(other))
    (tmp_path / "text.pth").write_text("once upon a time")
    (tmp_path / "lora.gguf").write_bytes(b"GGUF\x03\0\0\0")
    for file, problem in (
        ("other.pth", "it is of another model"),
        ("text.pth", "is no .pth"),
        ("lora.gguf", "is a GGUF file; a tuned initial state is"),
        (str(endless_file), "is a GGUF file"),
    ):
        with pytest.raises(AnserError, match=problem) as caught:
            make(store, f"FROM {endless_file}\nADAPTER {file}\n", folder=tmp_path)
        assert file in str(caught.value)
    with pytest.raises(AnserError, match="name it in ADAPTER, and its model in FROM"):
        make(store, f"FROM {tmp_path / 'other.pth'}\n")
    assert list(store.names()) == []
    assert blobs(store) == set()


def test_a_create_that_fails_later_leaves_no_state(
    store: Store, endless_file: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.creating.create.write_model", fail)
    with pytest.raises(KeyboardInterrupt):
        make(store, f"FROM {endless_file}\nADAPTER {tuned}\n")
    assert blobs(store) == set()


def test_damage_in_the_store_is_named(store: Store, endless_file: Path, tuned: Path) -> None:
    model = make(store, f"FROM {endless_file}\nADAPTER {tuned}\n")
    manifest, adapter = model.manifest, model.adapter
    assert adapter is not None
    twice = (*manifest.layers, *manifest.all(ADAPTER_TYPE))
    store.write_manifest(ModelName.parse("twice"), manifest.config, twice)
    with pytest.raises(ForeignModelError, match="twice:latest has 2 adapters"):
        open_model(store, ModelName.parse("twice"))
    assert [each.name.shortest for each in list_models(store)] == ["new:latest"]
    adapter.unlink()
    with pytest.raises(DamagedModelError, match=f"its file {adapter.name} is missing"):
        open_model(store, ModelName.parse("new"))


def test_the_command(tmp_path: Path, endless_file: Path, tuned: Path) -> None:
    anser = Anser(tmp_path, tmp_path / "models")
    made = anser.run("create", "mine", "--from", str(endless_file), "--adapter", tuned.name)
    assert made.returncode == 0, made.stderr
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/Modelfile").write_text(f"FROM {endless_file}\n")
    other = anser.run("create", "other", "-f", "sub/Modelfile", "--adapter", "tuned.pth")
    assert other.returncode == 0, other.stderr
    store = Store(anser.models)
    models = [open_model(store, ModelName.parse(name)) for name in ("mine", "other")]
    assert all(model is not None and same_state(model, tuned) for model in models)
    (tmp_path / "sub/Modelfile").write_text(f"FROM {endless_file}\nADAPTER {tuned}\n")
    for words, problem in (
        (("-f", "sub/Modelfile", "--adapter", "tuned.pth"), "--adapter and an ADAPTER line"),
        (("--from", str(endless_file), "--adapter", ""), "--adapter needs a file"),
        (("--from", str(endless_file), "--adapter", "none.pth"), "there is no file of that name"),
    ):
        refused = anser.run("create", "bad", *words)
        assert refused.returncode == 1
        assert problem in refused.stderr.splitlines()[-1]
        assert refused.stderr.splitlines()[-1].startswith("Error: ")
