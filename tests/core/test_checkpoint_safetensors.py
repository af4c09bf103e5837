"""safetensors files with hostile headers, and indexes of sharded models that lie."""

from __future__ import annotations

import json
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.checkpoint.safetensors import INDEX_NAME
from tests.tools.random_checkpoint import TINY, random_tensors, write_hugging_face
from tests.tools.refusal import refusal


def _write(path: Path, header: bytes, data: bytes = bytes(64), size: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header + data)


def _entry(shape: Any = (4, 4), offsets: Any = (0, 64), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE_ENTRIES: dict[str, tuple[str, Any]] = {
    "huge shape": ("does not fit the file", _entry(shape=[1 << 40, 1 << 40])),
    "shape beyond 64 bits": ("does not fit the file", _entry(shape=[1 << 100])),
    "negative size": ("impossible shape", _entry(shape=[-4, 4])),
    "two negative sizes": ("impossible shape", _entry(shape=[-4, -4])),
    "many dimensions": ("impossible shape", _entry(shape=[1] * 1000)),
    "float size": ("malformed", _entry(shape=[4.0, 4])),
    "boolean size": ("malformed", _entry(shape=[True, 16])),
    "shape no list": ("malformed", _entry(shape=16)),
    "offsets past the end": ("outside the file", _entry(offsets=[64, 128])),
    "negative offset": ("outside the file", _entry(offsets=[-64, 0])),
    "offsets reversed": ("outside the file", _entry(offsets=[64, 0])),
    "one offset": ("malformed", _entry(offsets=[0])),
    "offsets and shape differ": ("its shape needs 64", _entry(offsets=[0, 60])),
    "integers": ("'I64'", _entry(dtype="I64", shape=[8])),
    "type no text": ("'[]'", _entry(dtype=[])),
    "no dtype": ("'None'", {"shape": [4, 4], "data_offsets": [0, 64]}),
    "no entry": ("malformed", None),
    "list": ("malformed", [1, 2]),
}


@pytest.mark.parametrize(("problem", "entry"), HOSTILE_ENTRIES.values(), ids=HOSTILE_ENTRIES)
def test_entries_that_do_not_fit_the_file(tmp_path: Path, problem: str, entry: Any) -> None:
    path = tmp_path / "model.st"
    _write(path, json.dumps({"emb.weight": entry}).encode())
    assert problem in refusal(path)


HOSTILE_HEADERS: dict[str, tuple[str, bytes, int | None]] = {
    "longer than the file": ("more than the whole file", b"{}", 1 << 40),
    "length of all ones": ("more than the whole file", b"{}", (1 << 64) - 1),
    "negative as signed": ("more than the whole file", b"{}", 1 << 63),
    "no JSON": ("not valid JSON", b'{"a": ', None),
    "no UTF-8": ("not valid JSON", b'{"\xff\xfe": 1}', None),
    "nested bomb": ("nested too deeply", b'{"a":' + b"[" * 2_000_000, None),
    "nested objects": ("nested too deeply", b'{"a":' * 1_000_000, None),
    "number bomb": ("not valid JSON", b'{"a": ' + b"9" * 5_000_000 + b"}", None),
    "a name twice": ("a key twice", b'{"a": {}, "a": {}}', None),
    "long": ("no model needs it", b"{" + b" " * (9 << 20) + b"}", None),
    "empty": ("holds no tensors", b"{}", None),
    "only metadata": ("holds no tensors", b'{"__metadata__": {"format": "pt"}}', None),
}


@pytest.mark.parametrize(
    ("problem", "header", "size"), HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS
)
def test_hostile_headers(tmp_path: Path, problem: str, header: bytes, size: int | None) -> None:
    path = tmp_path / "model.st"
    _write(path, header, size=size)
    assert problem in refusal(path)


def test_tensors_that_share_bytes_or_leave_some(tmp_path: Path) -> None:
    path = tmp_path / "model.st"
    row = [8]
    _write(path, json.dumps({"a": _entry(row, [0, 32]), "b": _entry(row, [16, 48])}).encode())
    assert "tensor 'b' overlaps" in refusal(path)
    _write(path, json.dumps({"a": _entry(row, [0, 32]), "b": _entry(row, [0, 32])}).encode())
    assert "tensor 'b' overlaps" in refusal(path)
    _write(path, json.dumps({"a": _entry(row, [32, 64])}).encode())
    assert "unused bytes before" in refusal(path)


def test_a_name_with_line_breaks_stays_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.st"
    _write(path, json.dumps({"a\nb" * 200: _entry([1 << 50])}).encode())
    assert "a\\nb" in refusal(path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_hugging_face(tmp_path, random_tensors(TINY), TINY, shards=2)
    return tmp_path


@pytest.mark.parametrize(
    "file_name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.st",
        "..",
        ".",
        "",
        "a\\b",
        "a\nb",
        "a\0b",
        7,
        None,
    ],
)
def test_an_index_points_to_files_of_its_folder_only(sharded: Path, file_name: Any) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["lm_head.weight"] = file_name
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    assert "which is no file of its folder" in refusal(sharded)


def test_indexes_that_lie(sharded: Path) -> None:
    path = sharded / INDEX_NAME
    index = json.loads(path.read_text())
    names = index["weight_map"]
    first, second = sorted(set(names.values()))

    def problem(weight_map: Any) -> str:
        path.write_text(json.dumps({"weight_map": weight_map}))
        return refusal(sharded)

    moved = {name: first for name, file_name in names.items() if file_name == second}
    assert "it has none" in problem({**names, **moved})
    assert "no weight_map" in problem([])
    assert "no weight_map" in problem({})
    assert "there is no such file" in problem({**names, "x": "missing.safetensors"})
    assert "more than 500" in problem({f"t{i}": f"{i}.safetensors" for i in range(501)})
    assert "lacks the tensor" in problem({k: v for k, v in names.items() if "w_lora" not in k})
    assert "is not valid JSON" in refusal_of_text(path, "{")
    assert "is not a JSON object" in refusal_of_text(path, "[]")
    (sharded / second).write_bytes((sharded / second).read_bytes()[:-1])
    assert "truncated" in problem(names)


def refusal_of_text(path: Path, text: str) -> str:
    path.write_text(text)
    return refusal(path.parent)


def test_shards_may_be_links(sharded: Path) -> None:
    """Hugging Face's cache keeps the files elsewhere and links to them."""
    elsewhere = sharded / "blobs"
    elsewhere.mkdir()
    for path in list(sharded.glob("*.safetensors")):
        path.rename(elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)
    (elsewhere / "model.safetensors").write_bytes(b"not looked at")
    (sharded / INDEX_NAME).rename(sharded / "keep")
    assert "several model files" in refusal(sharded)
    (sharded / "keep").rename(sharded / INDEX_NAME)
    (sharded / "config.json").write_text('{"model_type": "rwkv6"}')
    assert refusal(sharded) == "describes a 'rwkv6' model; Anser runs RWKV-7"


@pytest.mark.parametrize("eps", [0.0, -1e-5, 1.0, "1e-5", None, float("nan"), float("inf")])
def test_an_epsilon_that_is_none(sharded: Path, eps: Any) -> None:
    (sharded / "config.json").write_text(json.dumps({"model_type": "rwkv7", "norm_eps": eps}))
    assert "no number between 0 and 1" in refusal(sharded)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": '{"chat_template": "{{ a }}"}'}, "{{ a }}"),
        (
            {"tokenizer_config.json": '{"chat_template": "old"}', "chat_template.jinja": "new"},
            "new",
        ),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "a"}]}'}, None),
        ({"tokenizer_config.json": '{"chat_template": "\\ud800"}'}, None),
        ({"tokenizer_config.json": "no JSON"}, None),
        ({}, None),
    ],
)
def test_the_chat_template_of_a_folder(
    tmp_path: Path, files: dict[str, str], expected: str | None
) -> None:
    write_hugging_face(tmp_path, random_tensors(TINY), TINY)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with closing(open_checkpoint(tmp_path)) as checkpoint:
        assert checkpoint.metadata.get("tokenizer.chat_template") == expected
