"""The reader against files that the `gguf` package writes."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from rwkv_core.checkpoint import open_checkpoint, read_config
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.checkpoint.gguf import GGUFCheckpoint
from rwkv_core.checkpoint.gguf_file import GGUFFile
from rwkv_core.checkpoint.names import GGUF, LERPS
from rwkv_core.errors import CheckpointError
from rwkv_core.tokenizer import WorldTokenizer
from tests.tools.gguf_files import (
    SMALL,
    gguf_bytes,
    random_checkpoint,
    tensor,
    text_key,
    uint_key,
)

KIND = gguf.GGUFValueType
SCALARS: dict[Any, list[Any]] = {
    KIND.UINT8: [0, 255],
    KIND.INT8: [-128, 127],
    KIND.UINT16: [0, 65535],
    KIND.INT16: [-32768, 32767],
    KIND.UINT32: [0, 2**32 - 1],
    KIND.INT32: [-(2**31), 2**31 - 1],
    KIND.UINT64: [0, 2**64 - 1],
    KIND.INT64: [-(2**63), 2**63 - 1],
    KIND.FLOAT32: [0.5, -1.5],
    KIND.FLOAT64: [0.1, -1e300],
    KIND.BOOL: [False, True],
    KIND.STRING: ["", "Grüße 🙂\n"],
}


def package_writer(path: Path) -> gguf.GGUFWriter:
    return gguf.GGUFWriter(path, "rwkv7")


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_values_and_arrays_of_every_type(tmp_path: Path) -> None:
    expected: dict[str, Any] = {"general.architecture": "rwkv7"}
    writer = package_writer(tmp_path / "a.gguf")
    for kind, values in SCALARS.items():
        for number, value in enumerate(values):
            expected[f"{kind.name}.{number}"] = value
            writer.add_key_value(f"{kind.name}.{number}", value, kind)
        expected[f"{kind.name}.array"] = values * 3
        writer.add_key_value(f"{kind.name}.array", values * 3, KIND.ARRAY, kind)
    finish(writer)
    file = GGUFFile(tmp_path / "a.gguf")
    assert dict(file.metadata) == expected
    assert {key: type(value) for key, value in file.metadata.items()} == {
        key: type(value) for key, value in expected.items()
    }
    file.close()


def test_nested_and_empty_arrays(tmp_path: Path) -> None:
    writer = package_writer(tmp_path / "a.gguf")
    writer.add_key_value("nested", [[1, 2], [3]], KIND.ARRAY, KIND.ARRAY)
    finish(writer)
    assert GGUFFile(tmp_path / "a.gguf").metadata["nested"] == [[1, 2], [3]]


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_a_tensor_of_every_type(type_name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[type_name]
    packed = np.random.default_rng(1).integers(0, 60, (3, 4 * layout.bytes_per_block), np.uint8)
    kind = gguf.GGMLQuantizationType[type_name]
    writer = package_writer(tmp_path / "a.gguf")
    writer.add_uint32("rwkv7.wkv.head_size", 4)
    writer.add_tensor("first", np.ones(5, np.float32))
    writer.add_tensor("token_embd.weight", packed, raw_dtype=kind)
    finish(writer)
    checkpoint = GGUFCheckpoint(tmp_path / "a.gguf")
    info = checkpoint.tensors["emb.weight"]
    assert info.shape == (3, 4 * layout.values_per_block)
    assert (info.type_name, info.nbytes) == (type_name, packed.nbytes)
    value = checkpoint.read("emb.weight")
    checkpoint.close()  # what was read is a copy
    plain = {"F16": torch.float16, "BF16": torch.bfloat16}
    assert value.dtype == plain.get(type_name, torch.float32)
    np.testing.assert_array_equal(value.float().numpy(), gguf.dequantize(packed, kind))


def test_a_view_outlives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes([], [tensor("a", [2])], np.ones(2, np.float32).tobytes()))
    file = GGUFFile(path)
    view = file.raw("a")
    assert not view.flags.writeable
    file.close()
    assert view.tobytes() == np.ones(2, np.float32).tobytes()


def test_only_the_wanted_tensor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    keys = [text_key("general.architecture", "rwkv7"), uint_key("rwkv7.wkv.head_size", 64)]
    infos = [tensor("big", [1 << 20, 1 << 10]), tensor("small", [8], offset=4 << 30)]
    content = gguf_bytes(keys, infos, b"\0")
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.seek((len(content) - 1) + (4 << 30))
        file.write(np.arange(8, dtype=np.float32).tobytes())
    tracemalloc.start()
    checkpoint = GGUFCheckpoint(path)
    assert checkpoint.read("small").tolist() == list(range(8))
    assert checkpoint.tensors["big"].nbytes == 4 << 30
    checkpoint.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_world_vocabulary_is_read_fast(tmp_path: Path) -> None:
    writer = package_writer(tmp_path / "a.gguf")
    tokens = WorldTokenizer.world().to_gguf()
    writer.add_token_list(tokens)
    finish(writer)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        file = GGUFFile(tmp_path / "a.gguf")
        seconds.append(time.process_time() - start)
        assert file.metadata["tokenizer.ggml.tokens"] == tokens
        file.close()
    assert len(tokens) == 65536
    assert min(seconds) < 0.3


def rewritten(tmp_path: Path, change: Any) -> GGUFCheckpoint:
    """A converted small model, every tensor passed through `change(name, array)`."""
    vocabulary = WorldTokenizer([None, *(bytes([byte]) for byte in range(256))])
    convert_to_gguf(random_checkpoint(), vocabulary, tmp_path / "a.gguf", name="a")
    source = GGUFFile(tmp_path / "a.gguf")
    writer = package_writer(tmp_path / "b.gguf")
    writer.add_uint32("rwkv7.wkv.head_size", SMALL.head_size)
    for name, info in source.tensors.items():
        array = change(name, source.raw(name).view(np.float32).reshape(info.shape))
        if array is not None:
            writer.add_tensor(name, np.ascontiguousarray(array))
    finish(writer)
    source.close()
    return GGUFCheckpoint(tmp_path / "b.gguf")


def test_canonical_names_shapes_and_values(tmp_path: Path) -> None:
    original = random_checkpoint()
    checkpoint = rewritten(tmp_path, lambda _, array: array)
    assert checkpoint.format == "gguf"
    assert checkpoint.tensors == original.tensors
    for name in original.tensors:
        assert torch.equal(checkpoint.read(name), original.read(name)), name
        assert checkpoint.read(name).is_contiguous()
    with pytest.raises(KeyError):
        checkpoint.read("blocks.0.att.v0")


def test_vectors_with_more_dimensions(tmp_path: Path) -> None:
    """Some converters keep the authors' [1, 1, D]."""
    original = random_checkpoint()

    def expand(_: str, array: Any) -> Any:
        return array.reshape(1, 1, -1) if array.ndim == 1 else array

    checkpoint = rewritten(tmp_path, expand)
    vectors = [name for name, info in original.tensors.items() if len(info.shape) == 1]
    assert len(vectors) > 20
    for name in vectors:
        assert torch.equal(checkpoint.read(name), original.read(name)), name


def test_a_fused_lerp_of_another_height_is_refused(tmp_path: Path) -> None:
    """Models without a gate have five lerps."""
    fused = GGUF.stored_name(f"blocks.0.{LERPS[0]}")
    with pytest.raises(CheckpointError, match=r"time_mix_lerp_fused.*\[5, 1, 1, 64\].*expected"):
        rewritten(tmp_path, lambda name, array: array[:5] if name == fused else array)


def test_a_model_without_one_tensor_is_refused(tmp_path: Path) -> None:
    lost = "blk.1.time_mix_g2.weight"
    checkpoint = rewritten(tmp_path, lambda name, array: None if name == lost else array)
    with pytest.raises(CheckpointError, match=r"lacks the tensor blocks\.1\.att\.g2"):
        read_config(checkpoint)


def test_open_checkpoint_knows_the_format_without_an_extension(tmp_path: Path) -> None:
    rewritten(tmp_path, lambda _, array: array).close()
    blob = tmp_path / "sha256-0123"
    (tmp_path / "b.gguf").rename(blob)
    checkpoint = open_checkpoint(blob)
    assert checkpoint.format == "gguf"
    assert read_config(checkpoint).n_layer == SMALL.n_layer
