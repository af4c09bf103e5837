"""Whatever bytes a file has: it opens, or one CheckpointError says why not."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rwkv_core.checkpoint import read_config
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.gguf import GGUFCheckpoint
from rwkv_core.checkpoint.gguf_file import GGUFFile
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError
from rwkv_core.tokenizer import WorldTokenizer
from tests.tools.gguf_files import array, gguf_bytes, key, random_checkpoint, string, tensor

# What parsing the small valid file takes, and the text of an error, many times over.
MAX_BYTES = 4_000_000

TINY = ModelConfig(2, 32, 16, 260, 32, 2, 3, 4, 5)

fuzzed = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@cache
def valid_file() -> bytes:
    """A converted model with Q8_0 blocks, an array of each shape, and values of every type."""
    vocabulary = WorldTokenizer([None, *(bytes([byte]) for byte in range(256))])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        convert_to_gguf(
            random_checkpoint(TINY),
            vocabulary,
            path,
            name="fuzz",
            quantize="q8_0",
            extra_metadata={"a": -5, "b": True, "c": 0.5, "d": ["x", "y"], "e": [0.5]},
        )
        return path.read_bytes()


@cache
def header_size() -> int:
    with opened(valid_file()) as path:
        file = GGUFFile(path)
        first = min(tensor.offset for tensor in file.tensors.values())
        file.close()
    return first


@contextmanager
def opened(content: bytes) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.gguf"
        path.write_bytes(content)
        yield path


def survives(content: bytes) -> None:
    """Opens the file and reads all of it; the only error may be a CheckpointError of one line."""
    with opened(content) as path:
        tracemalloc.start()
        problem = problem_of(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert problem is None or ("\n" not in problem and len(problem) < 400)
    assert peak < MAX_BYTES


def problem_of(path: Path) -> str | None:
    try:
        checkpoint = GGUFCheckpoint(path)
        try:
            read_config(checkpoint)
            for name, info in checkpoint.tensors.items():
                assert tuple(checkpoint.read(name).shape) == info.shape
        finally:
            checkpoint.close()
    except CheckpointError as error:
        return error.problem
    return None


def test_the_file_that_is_mutated_is_valid() -> None:
    with opened(valid_file()) as path:
        checkpoint = GGUFCheckpoint(path)
        assert torch.isfinite(checkpoint.read("head.weight")).all()
        checkpoint.close()


@fuzzed
@given(st.integers(0), st.integers(0, 255))
def test_one_byte_changed(position: int, value: int) -> None:
    content = bytearray(valid_file())
    content[position % header_size()] = value
    survives(bytes(content))


@fuzzed
@given(st.integers(0), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**62, 24, 7]))
def test_one_number_changed(position: int, value: int) -> None:
    """Eight bytes at a time: every count, length, dimension and offset meets the extremes."""
    content = bytearray(valid_file())
    start = position % header_size()
    content[start : start + 8] = value.to_bytes(8, "little")
    survives(bytes(content))


@fuzzed
@given(st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=12)), max_size=6))
def test_bytes_inserted_removed_and_replaced(edits: list[tuple[int, bytes]]) -> None:
    content = bytearray(valid_file())
    for number, (position, replacement) in enumerate(edits):
        start = position % len(content)
        end = start + (0, len(replacement), 3 * len(replacement))[number % 3]
        content[start:end] = replacement
    survives(bytes(content))


@fuzzed
@given(st.integers(0))
@example(-1)
def test_truncated_anywhere(size: int) -> None:
    survives(valid_file()[: size % len(valid_file())])


@fuzzed
@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic(tail: bytes) -> None:
    survives(b"GGUF\x03\x00\x00\x00" + tail)
    survives(tail)


VALUES = st.recursive(
    st.tuples(st.integers(0, 12), st.binary(max_size=12)),
    lambda inner: st.tuples(
        st.just(9),
        st.builds(
            lambda kind, count, parts: array(kind, count, b"".join(value for _, value in parts)),
            st.integers(0, 13),
            st.sampled_from([0, 1, 2, 3, 2**22, 2**40]),
            st.lists(inner, max_size=3),
        ),
    ),
    max_leaves=6,
)
DIMS = st.lists(st.sampled_from([0, 1, 2, 6, 32, 64, 2**31, 2**32, 2**63]), max_size=5)
NAMES = st.sampled_from(
    [
        "token_embd.weight", "blk.0.time_mix_r_k.weight", "blk.1.time_mix_w1.weight", "x",
        "blk.0.time_mix_lerp_fused.weight", "blk.0.attn_norm.weight", "blocks.0.att.w1",
    ]
)  # fmt: skip


@fuzzed
@given(
    st.lists(st.tuples(st.text(max_size=8), VALUES), max_size=4),
    st.lists(
        st.tuples(NAMES, DIMS, st.integers(0, 31), st.sampled_from([0, 32, 64, 2**40])), max_size=4
    ),
)
def test_any_header_of_the_right_form(
    keys: list[tuple[str, tuple[int, bytes]]], tensors: list[tuple[str, list[int], int, int]]
) -> None:
    rwkv7 = [
        key("general.architecture", 8, string("rwkv7")),
        key("rwkv7.wkv.head_size", 4, b"\x10\0\0\0"),
    ]
    content = gguf_bytes(
        [*rwkv7, *(key(name, kind, value) for name, (kind, value) in keys)],
        [tensor(*parts) for parts in tensors],
        np.zeros(4096, np.uint8).tobytes(),
    )
    survives(content)
