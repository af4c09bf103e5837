"""A GGUF file appears whole or not at all, and says what was declared."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from rwkv_core.checkpoint.ggml_blocks import Bytes
from rwkv_core.checkpoint.gguf_file import GGUFFile
from rwkv_core.checkpoint.gguf_writer import GGUFWriter, MetadataValue
from rwkv_core.errors import CheckpointError

METADATA: dict[str, MetadataValue] = {
    "general.architecture": "rwkv7",
    "text": "Grüße 🙂",
    "flag": True,
    "number": 2**32 - 1,
    "negative": -5,
    "large": 2**40,
    "real": 0.5,
    "texts": ["a", "", "\n"],
    "numbers": [-1, 3],
    "reals": [0.25, -2.0],
    "nothing": [],
}


def floats(count: int) -> Bytes:
    return np.arange(count, dtype=np.float32).view(np.uint8)


def write_two(path: Path, progress: Callable[[int, int], None] | None = None) -> None:
    with GGUFWriter(path, progress=progress) as writer:
        for key, value in METADATA.items():
            writer.add_metadata(key, value)
        writer.add_tensor("first", (3, 5), "F32")
        writer.add_tensor("second", (2, 32), "Q8_0")
        writer.write_tensor("first", [floats(15)[:8], floats(15)[8:]])
        writer.write_tensor("second", [np.arange(68, dtype=np.uint8)])


def test_the_gguf_package_reads_what_was_written(tmp_path: Path) -> None:
    write_two(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF")
    }
    assert fields == METADATA
    kinds = {key: [kind.name for kind in field.types] for key, field in reader.fields.items()}
    assert kinds["number"] == ["UINT32"]
    assert kinds["negative"] == kinds["large"] == ["INT64"]
    assert kinds["real"] == ["FLOAT32"]
    assert kinds["flag"] == ["BOOL"]
    assert kinds["numbers"][:2] == ["ARRAY", "INT32"]
    first, second = reader.tensors
    assert (first.name, list(first.shape), first.tensor_type.name) == ("first", [5, 3], "F32")
    np.testing.assert_array_equal(first.data, np.arange(15, dtype=np.float32).reshape(3, 5))
    assert (second.name, list(second.shape), second.tensor_type.name) == ("second", [32, 2], "Q8_0")
    assert second.data.tobytes() == bytes(range(68))


def test_our_reader_reads_what_was_written(tmp_path: Path) -> None:
    write_two(tmp_path / "a.gguf")
    file = GGUFFile(tmp_path / "a.gguf")
    assert dict(file.metadata) == METADATA
    assert file.raw("first").tobytes() == floats(15).tobytes()
    assert file.tensors["second"].shape == (2, 32)
    assert all(tensor.offset % 32 == 0 for tensor in file.tensors.values())
    assert (tmp_path / "a.gguf").stat().st_size % 32 == 0


def test_progress_counts_bytes_up_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_two(tmp_path / "a.gguf", lambda done, total: calls.append((done, total)))
    assert calls == [(8, 128), (60, 128), (128, 128)]


def test_the_result_has_ordinary_permissions(tmp_path: Path) -> None:
    write_two(tmp_path / "a.gguf")
    (tmp_path / "b").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.gguf", "b")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, CheckpointError("a", "b")])
def test_nothing_is_left_behind_by_an_exception(
    error: BaseException | type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("what was there")

    def stop(done: int, total: int) -> None:
        assert [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        write_two(path, stop)
    assert os.listdir(tmp_path) == ["a.gguf"]
    assert path.read_text() == "what was there"


def test_the_old_file_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("what was there")

    def check(done: int, total: int) -> None:
        assert path.read_text() == "what was there"

    write_two(path, check)
    assert GGUFFile(path).metadata == METADATA
    assert os.listdir(tmp_path) == ["a.gguf"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.gguf"
    with pytest.raises(CheckpointError, match=r"missing/a\.gguf: cannot be written: No such file"):
        write_two(path)
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.gguf: cannot be written: Is a directory"):
        write_two(folder)
    assert os.listdir(tmp_path) == ["folder.gguf"]


def nothing(writer: GGUFWriter) -> None:
    pass


def wrong_order(writer: GGUFWriter) -> None:
    writer.write_tensor("b", [floats(8)])


def too_short(writer: GGUFWriter) -> None:
    writer.write_tensor("a", [floats(7)])


def too_long(writer: GGUFWriter) -> None:
    writer.write_tensor("a", [floats(8), floats(1)])


def same_tensor(writer: GGUFWriter) -> None:
    writer.add_tensor("a", (1,), "F32")


def same_key(writer: GGUFWriter) -> None:
    writer.add_metadata("k", 1)


def long_name(writer: GGUFWriter) -> None:
    writer.add_tensor("x" * 64, (1,), "F32")


def half_block(writer: GGUFWriter) -> None:
    writer.add_tensor("x", (2, 33), "Q8_0")


def large_number(writer: GGUFWriter) -> None:
    writer.add_metadata("x", 2**64)


def too_late(writer: GGUFWriter) -> None:
    writer.write_tensor("a", [floats(8)])
    writer.add_metadata("x", 1)


@pytest.mark.parametrize(
    "misuse",
    [
        nothing, wrong_order, too_short, too_long, same_tensor, same_key, long_name, half_block,
        large_number, too_late,
    ],
)  # fmt: skip
def test_misuse_leaves_no_file(misuse: Callable[[GGUFWriter], None], tmp_path: Path) -> None:
    def write() -> None:
        with GGUFWriter(tmp_path / "a.gguf") as writer:
            writer.add_metadata("k", 0)
            writer.add_tensor("a", (8,), "F32")
            writer.add_tensor("b", (8,), "F32")
            misuse(writer)

    with pytest.raises(ValueError, match=r"."):
        write()
    assert os.listdir(tmp_path) == []


def test_a_file_without_tensors(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "a.gguf") as writer:
        writer.add_metadata("general.architecture", "rwkv7")
    assert GGUFFile(tmp_path / "a.gguf").tensors == {}
