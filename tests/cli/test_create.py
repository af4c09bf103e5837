"""`anser create` and `anser list`: every kind of file, every part of a Modelfile, every refusal."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_core import load_model
from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.recipes import RECIPES
from rwkv_core.config import ModelConfig
from rwkv_core.errors import AnserError
from rwkv_core.tokenizer import WorldTokenizer
from server.cli.create import sigterm_as_exception
from server.cli.list import rows_of_server, rows_of_store
from server.creating.create import create_model
from server.creating.modelfile import Command, Modelfile, parse_modelfile
from server.creating.new_model import model_title
from server.store.manifests import MODEL_TYPE
from server.store.names import ModelName
from server.store.show import show_json
from server.store.store import Store
from server.store.stored_model import StoredModel, open_model
from tests.tools.anser_command import Anser
from tests.tools.gguf_files import MemoryCheckpoint
from tests.tools.random_checkpoint import (
    TINY,
    random_tensors,
    write_hugging_face,
    write_pth,
    write_rwkv_cpp,
    write_safetensors,
)

# A World model, so that every format finds its vocabulary; as narrow as it can be.
WORLD = ModelConfig(
    n_layer=2,
    n_embd=32,
    head_size=16,
    vocab_size=65536,
    n_ffn=64,
    decay_rank=4,
    iclr_rank=4,
    value_rank=4,
    gate_rank=4,
)
KINDS = ("pth", "st", "hf", "gguf", "bin")


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(WORLD, dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def files(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]
) -> dict[str, Path]:
    """The same model in every format, under names as people give them."""
    folder = tmp_path_factory.mktemp("files")
    paths = {kind: folder / f"rwkv7-g1-32.{kind}" for kind in KINDS}
    write_pth(paths["pth"], tensors)
    write_safetensors(paths["st"], tensors)
    write_hugging_face(paths["hf"], tensors, WORLD, shards=2)
    write_rwkv_cpp(paths["bin"], tensors, type_name="F16")
    world = WorldTokenizer.world()
    convert_to_gguf(MemoryCheckpoint(tensors), world, paths["gguf"], name="rwkv7-g1-32")
    return paths


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def make(store: Store, text: str, name: str = "new", folder: Path = Path()) -> StoredModel:
    create_model(store, ModelName.parse(name), parse_modelfile(text), folder, lambda *_: None)
    model = open_model(store, ModelName.parse(name))
    assert model is not None
    return model


def blobs(store: Store) -> list[str]:
    folder = store.root / "blobs"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def first_logits(path: Path) -> torch.Tensor:
    model = load_model(path, dtype=torch.float32)
    return model.forward([1, 2, 3], model.new_state())[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_the_same_model(
    store: Store, files: dict[str, Path], kind: str
) -> None:
    model = make(store, f"FROM {files[kind].name}\n", folder=files[kind].parent)
    assert model.prompt_format.name == "g1", "the format is chosen by the file's name"
    assert model.details["family"] == "rwkv7"
    assert model.details["quantization_level"] == ("F16" if kind == "bin" else "BF16")
    tolerance = 5e-3 if kind == "bin" else 0.0  # F16 cannot hold all that BF16 does
    expected = first_logits(files["pth"])
    assert torch.allclose(first_logits(model.path), expected, rtol=0, atol=tolerance)
    assert not [name for name in blobs(store) if not name.startswith("sha256-")]


def test_a_gguf_file_is_stored_byte_for_byte(store: Store, files: dict[str, Path]) -> None:
    model = make(store, f"FROM {files['gguf']}\n")
    assert model.path.read_bytes() == files["gguf"].read_bytes()
    assert model.path.stat().st_ino != files["gguf"].stat().st_ino, "editing one changes the other"


def test_the_file_says_the_format_when_nothing_inside_does(
    store: Store, files: dict[str, Path], tmp_path: Path
) -> None:
    renamed = tmp_path / "rwkv7-g1-mine.gguf"
    with closing(open_checkpoint(files["gguf"])) as checkpoint:
        convert_to_gguf(checkpoint, WorldTokenizer.world(), renamed, name="untitled")
    assert make(store, f"FROM {renamed}\n", "parent").prompt_format.name == "g1"
    assert make(store, "FROM parent\n", "child").prompt_format.name == "g1"


def test_a_modelfile_becomes_layers_and_a_child_inherits_them(
    store: Store, files: dict[str, Path]
) -> None:
    parent = make(
        store,
        f"FROM {files['gguf']}\nSYSTEM Be brief.\nPARAMETER temperature 1\nPARAMETER stop a\n"
        "PARAMETER stop b\nMESSAGE user Hi\nMESSAGE assistant Hello\nLICENSE one\nLICENSE two\n",
        "parent",
    )
    assert parent.system == "Be brief."
    assert parent.parameters == {"temperature": 1.0, "stop": ["a", "b"]}
    assert [(each.role, each.content) for each in parent.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
    ]
    assert parent.licenses == ("one", "two")
    child = make(store, "FROM PARENT\nPARAMETER temperature 0.5\nLICENSE three\n", "child")
    assert child.path == parent.path
    assert child.system == parent.system
    assert child.parameters == {"temperature": 0.5, "stop": ["a", "b"]}
    assert child.messages == parent.messages
    assert child.licenses == ("one", "two", "three")
    assert child.details["parent_model"] == "parent:latest"
    layer = child.manifest.layer(MODEL_TYPE)
    assert layer is not None
    assert layer.size == parent.path.stat().st_size


def test_the_config_blob_is_as_ollamas(store: Store, files: dict[str, Path]) -> None:
    model = make(store, f"FROM {files['pth']}\n")
    config = json.loads(store.blob_path(model.manifest.config.digest).read_bytes())
    assert config["model_format"] == "gguf"
    assert config["model_family"] == "rwkv7"
    assert config["model_families"] == ["rwkv7"]
    assert config["file_type"] == "BF16"
    assert re.fullmatch(r"4\.\d\dM", config["model_type"])


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("models/RWKV-x070-World-0.1B.pth", "RWKV-x070-World-0.1B"),
        ("rwkv7-g1-2.9b/model.safetensors", "rwkv7-g1-2.9b"),
        ("rwkv7-g1-2.9b/model.safetensors.index.json", "rwkv7-g1-2.9b"),
        ("rwkv7-g1-2.9b/pytorch_model.bin", "rwkv7-g1-2.9b"),
        ("modelled.pth", "modelled"),
    ],
)
def test_a_model_is_named_after_its_file_or_folder(tmp_path: Path, path: str, title: str) -> None:
    assert model_title(tmp_path / path) == title


class _Evil:
    """A pickle that would leave a trace if it were run."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self._trace,))


def write_evil_pth(path: Path, trace: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Evil(trace)))
        archive.writestr("archive/version", "3\n")


def write_other_architecture(path: Path) -> None:
    torch.save({"blocks.0.att.time_maa_x": torch.zeros(4), "emb.weight": torch.zeros(8, 4)}, path)


def test_files_that_are_no_model_are_refused_and_leave_nothing(
    store: Store, files: dict[str, Path], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    write_evil_pth(tmp_path / "evil.pth", trace)
    write_other_architecture(tmp_path / "v6.pth")
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "folder").mkdir()
    for kind in ("pth", "st", "gguf", "bin"):
        data = files[kind].read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(data[: len(data) // 2])
    (tmp_path / "huge.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 16)
    write_pth(tmp_path / "pile.pth", random_tensors(TINY))  # no vocabulary of 300 tokens is known
    bad = [path for path in tmp_path.iterdir() if path != store.root]
    assert len(bad) == 11
    for path in bad:
        with pytest.raises(AnserError) as caught:
            make(store, f"FROM {path.name}\n", folder=tmp_path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(store.names()) == []
    assert blobs(store) == []
    assert not trace.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("FROM nobody\n", "FROM nobody: there is neither a file of that name in"),
        ("FROM ./nobody.pth\n", "there is neither"),
        ("FROM {file}\nADAPTER a.pth\nADAPTER b.pth\n", "(line 3): a second ADAPTER"),
        ("FROM {file}\nADAPTER absent.pth\n", "ADAPTER absent.pth: there is no file of that name"),
        ("FROM {file}\nDRAFT x\n", "(line 2): DRAFT needs a second model"),
        ("FROM {file}\nREQUIRES 999.0.0\n", "REQUIRES Ollama 999.0.0"),
        ("FROM {file}\nPARAMETER temperature -1\n", "temperature"),
    ],
)
def test_modelfiles_that_cannot_be_made_are_refused(
    store: Store, files: dict[str, Path], text: str, problem: str
) -> None:
    with pytest.raises(AnserError) as caught:
        make(store, text.format(file=files["gguf"]))
    assert problem in str(caught.value)
    assert list(store.names()) == []
    assert blobs(store) == []


@pytest.mark.parametrize(
    ("kind", "quantize"), [("pth", None), ("gguf", None), ("pth", "q6_k"), ("gguf", "q4_0")]
)
def test_an_interrupted_create_leaves_nothing(
    store: Store, files: dict[str, Path], kind: str, quantize: str | None
) -> None:
    def interrupt(_: str, num_done: int, num_total: int) -> None:
        if num_done:
            raise KeyboardInterrupt

    modelfile: Modelfile = parse_modelfile(f"FROM {files[kind]}\n")
    with pytest.raises(KeyboardInterrupt):
        create_model(store, ModelName.parse("new"), modelfile, Path(), interrupt, quantize=quantize)
    assert list(store.names()) == []
    assert blobs(store) == []


def test_the_command_creates_and_lists(
    files: dict[str, Path], tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    anser = Anser(tmp_path, tmp_path / "models")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "Modelfile").write_text("FROM ./mine.pth\nSYSTEM Be brief.\n")
    write_pth(tmp_path / "sub" / "mine.pth", tensors)
    made = anser.run("create", "Mine:v1", "-f", "sub/Modelfile")
    assert made.returncode == 0, made.stderr
    assert "converting model\n" in made.stderr
    assert "\x1b" not in made.stderr
    copied = anser.run("create", "other", "-f", "-", stdin="from mine:V1\n")
    assert copied.returncode == 0, copied.stderr
    listed = anser.run("ls")
    assert listed.returncode == 0, listed.stderr
    header, *rows = listed.stdout.splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    names = [row.split()[0] for row in rows]
    assert names == ["other:latest", "Mine:v1"]
    assert all(re.search(r" [0-9a-f]{12} +\d+(\.\d)? MB +.* ago$", row) for row in rows)
    only = anser.run("list", "mine").stdout.splitlines()[1:]
    assert [row.split()[0] for row in only] == ["Mine:v1"]


def quantized(store: Store, source: Path | str, quantize: str, name: str = "new") -> StoredModel:
    """What `anser create NAME --from SOURCE --quantize TYPE` makes, with no warning."""
    modelfile = Modelfile((Command("from", str(source)),))
    create_model(
        store,
        ModelName.parse(name),
        modelfile,
        Path(),
        lambda *_: None,
        quantize=quantize,
        warn=pytest.fail,
    )
    model = open_model(store, ModelName.parse(name))
    assert model is not None
    return model


@pytest.mark.parametrize("quantize", RECIPES)
def test_a_quantized_model_says_so(store: Store, files: dict[str, Path], quantize: str) -> None:
    model = quantized(store, files["pth"], quantize)
    assert model.details["quantization_level"] == quantize.upper()
    assert show_json(model)["details"]["quantization_level"] == quantize.upper()
    (row,) = rows_of_store(store)
    assert row.size == model.manifest.size
    # 16 bits a weight become at most 8.5, and the vocabulary's megabyte stays.
    assert model.path.stat().st_size < 0.75 * files["gguf"].stat().st_size
    assert torch.isfinite(first_logits(model.path)).all()
    assert not [each for each in blobs(store) if not each.startswith("sha256-")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_quantized_to_the_same(
    store: Store, files: dict[str, Path], kind: str
) -> None:
    model = quantized(store, files[kind], "q5_1")
    assert model.facts.name == model_title(files[kind])
    assert model.prompt_format.name == "g1"
    tolerance = 5e-3 if kind == "bin" else 0.0
    expected = first_logits(quantized(store, files["pth"], "q5_1", "expected").path)
    assert torch.allclose(first_logits(model.path), expected, rtol=0, atol=tolerance)


def test_a_stored_model_is_quantized(store: Store, files: dict[str, Path]) -> None:
    parent = make(store, f"FROM {files['gguf']}\nSYSTEM Be brief.\n", "parent")
    child = quantized(store, "parent", "Q4_K_M", "child")
    assert child.system == "Be brief."
    assert child.details["parent_model"] == "parent:latest"
    assert child.details["quantization_level"] == "Q4_K_M"
    assert child.facts.name == "rwkv7-g1-32"
    assert child.title == parent.title
    assert child.path != parent.path
    assert parent.path.read_bytes() == files["gguf"].read_bytes()
    expected = quantized(store, files["pth"], "q4_k_m", "expected")
    assert torch.equal(first_logits(child.path), first_logits(expected.path))


def test_a_model_of_the_wanted_type_stays_as_it_is(store: Store, files: dict[str, Path]) -> None:
    first = quantized(store, files["pth"], "q4_0", "first")
    assert quantized(store, "first", "Q4_0", "second").path == first.path
    assert quantized(store, first.path, "q4_0", "third").path == first.path


def test_quantizing_again_is_one_warning(store: Store, files: dict[str, Path]) -> None:
    quantized(store, files["pth"], "q8_0", "first")
    warnings: list[str] = []
    create_model(
        store,
        ModelName.parse("second"),
        parse_modelfile("FROM first"),
        Path(),
        lambda *_: None,
        quantize="q4_0",
        warn=warnings.append,
    )
    assert warnings == [
        "first:latest is quantized already (Q8_0) and loses a little more now; "
        "the original file would give a better model"
    ]
    second = open_model(store, ModelName.parse("second"))
    assert second is not None
    assert second.details["quantization_level"] == "Q4_0"


def test_quantizing_that_fails_leaves_nothing(
    store: Store, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    bad = {**tensors, "blocks.1.ffn.value.weight": tensors["blocks.1.ffn.value.weight"].clone()}
    bad["blocks.1.ffn.value.weight"][3, 3] = torch.inf
    write_pth(tmp_path / "bad.pth", bad)
    problem = r"bad\.pth: the tensor 'blocks\.1\.ffn\.value\.weight' holds NaN or infinity"
    with pytest.raises(AnserError, match=problem):
        quantized(store, tmp_path / "bad.pth", "q8_0")
    with pytest.raises(AnserError, match="unknown quantization 'q2_k'; the known ones are q8_0, "):
        quantized(store, tmp_path / "bad.pth", "q2_k")
    assert list(store.names()) == []
    assert blobs(store) == []


def test_the_command_quantizes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    anser = Anser(tmp_path, tmp_path / "models")
    write_pth(tmp_path / "mine.pth", tensors)
    plain = anser.run("create", "plain", "--from", "mine.pth")
    assert plain.returncode == 0, plain.stderr
    assert "converting model\n" in plain.stderr
    with anser.terminal("create", "--from", "mine.pth", "small", "--quantize", "Q4_K_M") as small:
        small.expect(r"quantizing BF16 model to Q4_K_M 100% ▕█+▏ \d\.\d MB/\d\.\d MB")
        small.expect(r"verifying conversion")
        small.expect(r"creating new layer sha256:[0-9a-f]{8}")
        small.expect(r"writing manifest")
        small.expect(r"Created small:latest")
        assert small.wait() == 0
        assert "Warning" not in small.text
    (tmp_path / "Modelfile").write_text("FROM small\nSYSTEM Be brief.\n")
    again = anser.run("create", "again", "-q", "q4_0")
    assert again.returncode == 0, again.stderr
    # Rows of 32 make Q8_0 of Q6_K, which most of this model is: embedding and head.
    warnings = [line for line in again.stderr.splitlines() if "Warning" in line]
    assert warnings == [
        "Warning: small:latest is quantized already (Q8_0) and loses a little more now; "
        "the original file would give a better model"
    ]
    store = Store(anser.models)
    models = [open_model(store, ModelName.parse(name)) for name in ("plain", "small", "again")]
    assert [model and model.quantization for model in models] == ["BF16", "Q4_K_M", "Q4_0"]
    assert [model and model.system for model in models] == ["", "", "Be brief."]


def test_a_server_lists_what_the_store_lists(anser: Anser) -> None:
    of_store = sorted(rows_of_store(Store(anser.models)), key=lambda row: row.name)
    of_server = sorted(rows_of_server(f"http://{anser.host}"), key=lambda row: row.name)
    assert [replace(row, modified_s=0) for row in of_server] == [
        replace(row, modified_s=0) for row in of_store
    ]
    for ours, theirs in zip(of_store, of_server, strict=True):
        assert abs(ours.modified_s - theirs.modified_s) < 1.1


def test_an_empty_list_is_a_header(tmp_path: Path) -> None:
    listed = Anser(tmp_path, tmp_path / "none").run("list")
    assert (listed.returncode, listed.stdout, listed.stderr) == (
        0,
        "NAME    ID    SIZE    MODIFIED\n",
        "",
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "text", "problem"),
    [
        (("create", "new"), None, "Modelfile: No such file or directory; write it, or name"),
        (("create", "new", "-f", "."), None, ".: Is a directory; check the path"),
        (("create", "a b", "-f", "Modelfile"), "FROM x\n", "invalid model name 'a b'"),
        (
            ("create", "new"),
            "FROM x\nFORM y\n",
            'Modelfile: (line 2): command must be one of "from"',
        ),
        (("create", "new"), "FROM cut.gguf\n", "cut.gguf: "),
        (("create", "new", "--from", "cut.gguf"), None, "cut.gguf: "),
        (("create", "new", "--from", ""), None, "--from needs a file or the name of a model"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, words: tuple[str, ...], text: str | None, problem: str
) -> None:
    if text:
        (tmp_path / "Modelfile").write_text(text)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    result = Anser(tmp_path, tmp_path / "models").run(*words)
    assert result.returncode == 1
    assert problem in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert result.stdout == ""


def test_a_file_and_a_modelfile_exclude_each_other(tmp_path: Path) -> None:
    result = Anser(tmp_path, tmp_path / "models").run("create", "a", "--from", "b", "-f", "c")
    assert result.returncode == 2
    assert result.stderr == (
        "Error: argument -f/--file: not allowed with argument --from; see `anser create --help`\n"
    )


def test_being_told_to_end_leaves_nothing(store: Store, files: dict[str, Path]) -> None:
    def end(_: str, num_done: int, num_total: int) -> None:
        if num_done:
            os.kill(os.getpid(), signal.SIGTERM)

    modelfile = parse_modelfile(f"FROM {files['pth']}\n")
    with pytest.raises(SystemExit) as caught, sigterm_as_exception():
        create_model(store, ModelName.parse("new"), modelfile, Path(), end)
    assert caught.value.code == 128 + signal.SIGTERM
    assert list(store.names()) == []
    assert blobs(store) == []
