"""Matrices as they are stored: the same rows out of every format, in slices that can be packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from rwkv_core.checkpoint import StoredCheckpoint, open_checkpoint
from rwkv_core.checkpoint import base as checkpoint_base
from rwkv_core.checkpoint.base import main_type, output_major_shape, tensor_bytes
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Bytes
from rwkv_core.formulas import is_matrix
from rwkv_core.tokenizer import WorldTokenizer
from tests.tools.gguf_files import MemoryCheckpoint
from tests.tools.random_checkpoint import (
    TINY,
    random_tensors,
    write_hugging_face,
    write_pth,
    write_rwkv_cpp,
    write_safetensors,
)

BYTES = WorldTokenizer([None, *(bytes([value]) for value in range(256))])


def _hugging_face(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_hugging_face(path, tensors, TINY, shards=2)


def _rwkv_cpp(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_rwkv_cpp(path, tensors, type_name="F32")


def _gguf(path: Path, tensors: Mapping[str, Tensor]) -> None:
    convert_to_gguf(MemoryCheckpoint(dict(tensors)), BYTES, path, name="a")


def _transposed_pth(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every matrix in the order of its columns, with strides that say so."""
    write_pth(path, {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in tensors.items()})


def rows(checkpoint: StoredCheckpoint, name: str, multiple: int = 1) -> Bytes:
    """All rows of a matrix; checks how they are cut."""
    info = checkpoint.tensors[name]
    num_rows, num_cols = output_major_shape(info)
    row_bytes = LAYOUTS[info.type_name].num_bytes(num_cols)
    found: list[Bytes] = []
    position = 0
    for first_row, packed in checkpoint.row_slices(name, multiple):
        assert packed.dtype == np.uint8
        assert packed.ndim == 1
        assert packed.flags.c_contiguous
        assert first_row * row_bytes == position
        assert first_row % multiple == 0
        position += packed.size
        found.append(packed.copy())
    assert position == num_rows * row_bytes
    return np.concatenate(found)


@pytest.mark.parametrize("slice_bytes", [1, 5000, 16 << 20])
@pytest.mark.parametrize(
    "write", [write_pth, _transposed_pth, write_safetensors, _hugging_face, _rwkv_cpp, _gguf]
)
def test_every_format_gives_rows_of_outputs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, Mapping[str, Tensor]], None],
    slice_bytes: int,
) -> None:
    monkeypatch.setattr(checkpoint_base, "_SLICE_BYTES", slice_bytes)
    tensors = random_tensors(TINY)
    write(tmp_path / "model", tensors)
    with closing(open_checkpoint(tmp_path / "model")) as checkpoint:
        matrices = [name for name in tensors if is_matrix(name)]
        assert len(matrices) > 30
        for name in matrices:
            is_low_rank = name[-2:] in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2")
            expected = tensors[name].t() if is_low_rank else tensors[name]
            assert output_major_shape(checkpoint.tensors[name]) == tuple(expected.shape)
            for multiple in (1, 128):
                packed = rows(checkpoint, name, multiple)
                assert np.array_equal(packed, tensor_bytes(expected.contiguous())), name


@pytest.mark.parametrize("type_name", ["F16", "Q4_0", "Q5_1", "Q8_0"])
def test_blocks_stay_as_they_are(tmp_path: Path, type_name: str) -> None:
    tensors = random_tensors(TINY)
    write_rwkv_cpp(tmp_path / "model.bin", tensors, type_name=type_name)
    with closing(open_checkpoint(tmp_path / "model.bin")) as checkpoint:
        for name in ("blocks.1.ffn.value.weight", "blocks.2.att.output.weight"):
            kind = GGMLQuantizationType[type_name]
            expected = quants.quantize(tensors[name].numpy(), kind)
            assert np.array_equal(rows(checkpoint, name), expected.view(np.uint8).reshape(-1))
        assert main_type(checkpoint) == type_name


def test_a_slice_of_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    write_pth(path, random_tensors(TINY, dtype=torch.bfloat16))
    with closing(open_checkpoint(path)) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(2000)
        with pytest.raises(Exception, match="truncated or damaged"):
            list(checkpoint.row_slices("head.weight"))
