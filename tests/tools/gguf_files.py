"""GGUF files for tests: built byte by byte, so that every rule of the format can be broken."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_core.checkpoint import TensorInfo
from rwkv_core.config import ModelConfig
from tests.tools.random_checkpoint import random_tensors

# Small, with every size different, two layers (only later ones have a value residual), rows of
# 64 values in which Q8_0 blocks fit, and a low rank that fills no block.
SMALL = ModelConfig(
    n_layer=2,
    n_embd=64,
    head_size=16,
    vocab_size=300,
    n_ffn=96,
    decay_rank=8,
    iclr_rank=12,
    value_rank=4,
    gate_rank=20,
)

_TYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass
class MemoryCheckpoint:
    """A model in memory, under canonical names."""

    weights: dict[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path("memory")
    format: str = "pth"

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(name, tuple(value.shape), _TYPE_NAMES[value.dtype], value.nbytes)
            for name, value in self.weights.items()
        }

    def read(self, name: str) -> Tensor:
        return self.weights[name].clone()

    def close(self) -> None:
        pass


def random_checkpoint(
    config: ModelConfig = SMALL, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> MemoryCheckpoint:
    """Every value different, so that a swapped or transposed tensor cannot pass for another."""
    return MemoryCheckpoint(random_tensors(config, seed, dtype))


def string(text: str | bytes) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def text_key(name: str, value: str) -> bytes:
    return key(name, 8, string(value))


def uint_key(name: str, value: int) -> bytes:
    return key(name, 4, struct.pack("<I", value))


def array(kind: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + elements


def tensor(name: str | bytes, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """`dims` in the file's order, the fastest first."""
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    header = head + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data if data else header
