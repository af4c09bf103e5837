"""One random model, written in every format, is the same model when it is read back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwkv_core.checkpoint import open_checkpoint, read_config, tensor_shapes
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError
from tests.tools.random_checkpoint import (
    DTYPES,
    PRESETS,
    TINY,
    random_tensors,
    write_hugging_face,
    write_pth,
    write_rwkv_cpp,
    write_safetensors,
)
from tests.tools.refusal import refusal

Writer = Callable[[Path, Mapping[str, Tensor]], None]


def _pth_bare(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_pth(path, tensors, has_3d_vectors=False, has_unused=False)


def _hugging_face(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_hugging_face(path, tensors, TINY)


def _hugging_face_sharded(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_hugging_face(path, tensors, TINY, shards=3)


EXACT_WRITERS = {
    "pth": write_pth,
    "pth with plain vectors": _pth_bare,
    "st": write_safetensors,
    "hugging face": _hugging_face,
    "hugging face, sharded": _hugging_face_sharded,
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_tensors(TINY, seed=1)


def assert_same(path: Path, expected: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Every tensor equals the expected one bit for bit, has `dtype`, and is described truly."""
    with closing(open_checkpoint(path)) as checkpoint:
        assert read_config(checkpoint) == TINY
        assert set(checkpoint.tensors) == set(expected)
        for name, info in checkpoint.tensors.items():
            tensor = checkpoint.read(name)
            assert tensor.dtype == dtype
            assert tensor.shape == info.shape
            assert tensor.nbytes == info.nbytes
            assert tensor.is_contiguous()
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("write", EXACT_WRITERS.values(), ids=EXACT_WRITERS)
def test_formats_that_store_any_type_give_back_every_bit(
    tmp_path: Path, tensors: dict[str, Tensor], write: Writer, dtype: torch.dtype
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    write(tmp_path / "model", stored)
    assert_same(tmp_path / "model", stored, dtype)


def test_rwkv_cpp_in_float32_gives_back_every_bit(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    write_rwkv_cpp(tmp_path / "model", tensors, type_name="F32")
    assert_same(tmp_path / "model", tensors, torch.float32)


# The largest error, in units of the largest number: half a step of 2^bits levels, or a whole step
# at the end where the signed types have no level.
@pytest.mark.parametrize(
    ("type_name", "tolerance"),
    [
        ("F16", 0.0005),
        ("Q8_0", 0.005),
        ("Q5_1", 0.04),
        ("Q5_0", 0.07),
        ("Q4_1", 0.08),
        ("Q4_0", 0.13),
    ],
)
def test_rwkv_cpp_types_keep_their_precision(
    tmp_path: Path, tensors: dict[str, Tensor], type_name: str, tolerance: float
) -> None:
    write_rwkv_cpp(tmp_path / "model", tensors, type_name=type_name)
    with closing(open_checkpoint(tmp_path / "model")) as checkpoint:
        assert read_config(checkpoint) == TINY
        types = {info.type_name for info in checkpoint.tensors.values()}
        assert types == {"F32", "F16", type_name}
        for name, expected in tensors.items():
            tensor = checkpoint.read(name)
            exact = checkpoint.tensors[name].type_name == "F32"
            limit = 0.0 if exact else tolerance * expected.abs().max().item()
            assert (tensor.float() - expected).abs().max().item() <= limit, name


def test_a_checkpoint_outlives_neither_its_file_nor_the_other_way_round(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    write_pth(tmp_path / "model", tensors)
    with closing(open_checkpoint(tmp_path / "model")) as checkpoint:
        tensor = checkpoint.read("blocks.1.att.w1")
        again = checkpoint.read("blocks.1.att.w1")
        tensor.zero_()  # memory of its own
        assert torch.equal(again, tensors["blocks.1.att.w1"])
        with pytest.raises(KeyError):
            checkpoint.read("blocks.0.att.v1")
        # A file that shrinks while it is open is an error, not a crash of the process.
        (tmp_path / "model").write_bytes(b"")
        with pytest.raises(CheckpointError, match="truncated"):
            checkpoint.read("emb.weight")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_released_number_of_parameters(name: str) -> None:
    shapes = tensor_shapes(PRESETS[name]).values()
    num_parameters = sum(torch.Size(shape).numel() for shape in shapes) / 1e9
    assert num_parameters == pytest.approx(
        {"0.1B": 0.191, "0.4B": 0.451, "1.5B": 1.53, "2.9B": 2.95}[name], rel=0.005
    )


@pytest.mark.parametrize("n_layer", [1, 2])
def test_every_size_is_read_from_the_tensors(tmp_path: Path, n_layer: int) -> None:
    config = ModelConfig(
        n_layer=n_layer,
        n_embd=24,
        head_size=8,
        vocab_size=257,
        n_ffn=40,
        decay_rank=1,
        iclr_rank=2,
        value_rank=3 if n_layer > 1 else 0,  # a single layer has no value residual
        gate_rank=24,
        layer_norm_eps=2e-5,
    )
    write_hugging_face(tmp_path, random_tensors(config), config)
    with closing(open_checkpoint(tmp_path)) as checkpoint:
        assert read_config(checkpoint) == config


def test_the_first_hugging_face_checkpoints_with_fused_lerps(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    write_hugging_face(tmp_path, tensors, TINY)
    stored = load_file(tmp_path / "model.safetensors")
    for layer in range(TINY.n_layer):
        lerps = [stored.pop(f"model.layers.{layer}.attn.x_{part}") for part in "rwkvag"]
        stored[f"model.layers.{layer}.attn.x_x"] = torch.cat(lerps).squeeze(1)
    save_file(stored, tmp_path / "model.safetensors")
    assert_same(tmp_path, tensors, torch.float32)


def test_hugging_face_names_in_a_pickled_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_hugging_face(tmp_path / "hf", tensors, TINY)
    torch.save(load_file(tmp_path / "hf" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert_same(tmp_path / "pytorch_model.bin", tensors, torch.float32)


def test_folders_open_by_what_they_hold(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    assert refusal(tmp_path) == "is a folder without a model file"
    (tmp_path / "notes.txt").write_text("no model")
    assert refusal(tmp_path) == "is a folder without a model file"
    write_pth(tmp_path / "a.pth", tensors)
    assert_same(tmp_path, tensors, torch.float32)
    write_safetensors(tmp_path / "b.st", tensors)
    assert "several model files (a.pth, b.st)" in refusal(tmp_path)


STRANGERS = {
    "is empty": b"",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 382\n",
    "web page": b"<!DOCTYPE html><html></html>",
    "before 1.6": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    "GGJT": b"tjgg\x03\x00\x00\x00" + bytes(40),
    "is no .pth, safetensors, GGUF or rwkv.cpp file": b"hello, this is a text",
    "it does not list": b'{"weight_maps": {}}',
    "not valid JSON": b"{ ",
    "archive": b"PK\x03\x04" + bytes(100),
    "truncated": b"fmgg",
}


@pytest.mark.parametrize(("problem", "content"), STRANGERS.items(), ids=STRANGERS)
def test_files_that_are_no_models(tmp_path: Path, problem: str, content: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert problem in refusal(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.pth") == "there is no such file"
    os.mkfifo(tmp_path / "pipe")  # would block for ever if it were opened
    assert refusal(tmp_path / "pipe") == "is not a regular file"
    assert "is not a regular file" in refusal(Path("/dev/null"))
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in refusal(tmp_path / "loop")
    assert "cannot be read" in refusal(tmp_path / "nul\0byte")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model of a few kilobytes in each single-file format."""
    config = ModelConfig(
        n_layer=1, n_embd=8, head_size=4, vocab_size=9, n_ffn=8, **dict.fromkeys(_RANKS, 2)
    )
    tensors = random_tensors(config)
    folder = tmp_path_factory.mktemp("small")
    for writer in (write_pth, write_safetensors, write_rwkv_cpp):
        writer(folder / writer.__name__, tensors)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


_RANKS = ("decay_rank", "iclr_rank", "value_rank", "gate_rank")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_but_never_breaks_the_reader(
    small_files: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    """Bytes flipped, overwritten with extremes, cut out or cut off, wherever they are."""
    content = bytearray(data.draw(st.sampled_from(sorted(small_files.items())))[1])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(
            st.sampled_from([b"\xff", b"\x00", b"\x7f", b"\xff" * 4, b"\x00" * 8, b"9" * 30, b"["])
            | st.binary(min_size=1, max_size=4)
        )
        length = data.draw(st.sampled_from([0, len(patch), len(patch), 40, len(content)]))
        content[position : position + length] = patch
    path = tmp_path / "model"
    path.write_bytes(content)
    try:
        with closing(open_checkpoint(path)) as checkpoint:
            read_config(checkpoint)
            for name in itertools.islice(checkpoint.tensors, 100):
                checkpoint.read(name)
    except CheckpointError:
        refusal(path)
