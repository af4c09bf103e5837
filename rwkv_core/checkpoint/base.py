"""What every checkpoint reader offers, and the parts that they share."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Bytes
from rwkv_core.checkpoint.names import (
    AUTHORS,
    HUGGING_FACE,
    LERPS,
    Naming,
    Source,
    is_low_rank,
    num_dims,
)
from rwkv_core.errors import CheckpointError, quoted

# Types of plain numbers, as TensorInfo names them. Any other type is quantized in blocks.
PLAIN_TYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

# What reading a matrix as it is stored costs in memory.
_SLICE_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: `shape` in PyTorch's order, `nbytes` as stored."""

    name: str
    shape: tuple[int, ...]
    type_name: str  # "F32", "F16", "BF16" or the name of a ggml block type, such as "Q8_0"
    nbytes: int


class Checkpoint(Protocol):
    """An opened model file, its header checked against the file's size. Weights are read on demand.

    Opening says nothing yet about whether the tensors make an RWKV-7 model: `read_config` does. Not
    safe for use by several threads at once.
    """

    @property
    def path(self) -> Path: ...

    @property
    def format(self) -> str:
        """ "pth", "safetensors", "gguf" or "rwkv.cpp"."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF's key/values. Other formats have at most LAYER_NORM_EPS_KEY."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Canonical names -> canonical shapes. A name that is none of RWKV-7's stays as it is."""

    def read(self, name: str) -> Tensor:
        """Reads one tensor, contiguous, into memory of its own, in its canonical shape.

        F32, F16 and BF16 come as they are stored, quantized types as float32. Raises
        CheckpointError when the file cannot be read, KeyError for a name not in `tensors`.
        """

    def close(self) -> None:
        """Closes the file; tensors already read stay valid."""


class RowSlice(NamedTuple):
    """Whole rows of a matrix as a file packs them: a flat array, valid until the next slice."""

    first_row: int
    packed: Bytes


class StoredCheckpoint(Checkpoint, Protocol):
    """A Checkpoint whose matrices can also be had as they are stored."""

    def row_slices(self, name: str, multiple: int = 1) -> Iterator[RowSlice]:
        """A matrix in its stored type, in order, in slices of about 16 MB.

        Rows are outputs (`output_major_shape`), so that of the low-rank pairs `w1` comes as [R, D]
        and `w2` as [D, R]. Every slice but the last has a multiple of `multiple` rows.
        """


class TranslatedCheckpoint(ABC):
    """A StoredCheckpoint over the tensors of a file; subclasses open the file and read from it."""

    def __init__(
        self,
        path: Path,
        format: str,
        naming: Naming,
        stored: Mapping[str, TensorInfo],
        *,
        metadata: Mapping[str, Any] | None = None,
        head_size: int | None = None,
    ) -> None:
        """`stored`: the file's own names and shapes; `head_size`: for files whose r_k is flat."""
        self.path = path
        self.format = format
        self.metadata: Mapping[str, Any] = metadata or {}
        self._sources = naming.sources(stored)
        self.tensors: Mapping[str, TensorInfo] = {
            name: _canonical_info(path, name, source, stored[source.stored_name], head_size)
            for name, source in self._sources.items()
        }

    def read(self, name: str) -> Tensor:
        source = self._sources[name]
        return to_canonical(self._read_stored(source.stored_name), source, self.tensors[name].shape)

    def row_slices(self, name: str, multiple: int = 1) -> Iterator[RowSlice]:
        source, info = self._sources[name], self.tensors[name]
        if is_low_rank(name) != source.is_transposed:  # stored by inputs: small, and plain numbers
            yield RowSlice(0, tensor_bytes(self.read(name).t().contiguous()))
            return
        row_bytes = LAYOUTS[info.type_name].num_bytes(output_major_shape(info)[1])
        num_rows = max(1, _SLICE_BYTES // (row_bytes * multiple)) * multiple
        slices = self._stored_slices(source.stored_name, num_rows * row_bytes)
        for index, packed in enumerate(slices):
            yield RowSlice(index * num_rows, packed)

    @abstractmethod
    def _read_stored(self, stored_name: str) -> Tensor:
        """The tensor in the stored shape, in memory of its own."""

    @abstractmethod
    def _stored_slices(self, stored_name: str, slice_bytes: int) -> Iterator[Bytes]:
        """The tensor's bytes in C order, so many at a time; each slice valid until the next."""

    @abstractmethod
    def close(self) -> None: ...


def main_type(checkpoint: Checkpoint) -> str:
    """The type that most of the weights are stored in: "Q8_0", "BF16"."""
    num_values = Counter[str]()
    for info in checkpoint.tensors.values():
        num_values[info.type_name] += math.prod(info.shape)
    return num_values.most_common(1)[0][0]


def output_major_shape(info: TensorInfo) -> tuple[int, int]:
    """Rows (outputs) and columns (inputs) of a matrix; for all but the low-rank pairs its shape."""
    rows, cols = info.shape
    return (cols, rows) if is_low_rank(info.name) else (rows, cols)


def tensor_bytes(tensor: Tensor) -> Bytes:
    """A flat view of a contiguous tensor's bytes."""
    packed: Bytes = tensor.view(-1).view(torch.uint8).numpy()
    return packed


def to_canonical(stored: Tensor, source: Source, shape: tuple[int, ...]) -> Tensor:
    """The canonical tensor of `shape` out of the stored one, contiguous."""
    if source.fused_row is not None:
        return stored.reshape(len(LERPS), -1)[source.fused_row].clone()
    if source.is_transposed:
        stored = stored.t()
    return stored.contiguous().reshape(shape)


def choose_naming(stored_names: Mapping[str, TensorInfo]) -> Naming:
    """The authors' or Hugging Face's, for the formats that come in both."""
    outer = HUGGING_FACE.outer["emb.weight"]
    is_hugging_face = outer in stored_names or any(
        name.startswith(HUGGING_FACE.block_prefix) for name in stored_names
    )
    return HUGGING_FACE if is_hugging_face else AUTHORS


def unreadable_type(path: Path, name: str, type_name: str) -> CheckpointError:
    """For a tensor of a type that no released model has."""
    known = ", ".join(PLAIN_TYPES)
    return CheckpointError(
        path, f"stores tensor {quoted(name)} as {quoted(type_name)}; convert it to one of {known}"
    )


def plain_size(
    path: str | os.PathLike[str], name: str, shape: Sequence[int], type_name: str, limit: int
) -> int:
    """Bytes of a tensor of plain numbers; CheckpointError if they are absurd or exceed `limit`."""
    if len(shape) > 8 or any(size < 0 for size in shape):
        raise CheckpointError(path, f"tensor {quoted(name)} has an impossible shape")
    nbytes = math.prod(shape) * PLAIN_TYPES[type_name].itemsize
    if nbytes > limit:
        raise CheckpointError(
            path, f"tensor {quoted(name)} does not fit the file: the file is truncated or damaged"
        )
    return nbytes


def _canonical_info(
    path: Path, name: str, source: Source, stored: TensorInfo, head_size: int | None
) -> TensorInfo:
    """The info after `to_canonical`; a shape that does not fit stays: `read_config` refuses it."""
    shape = stored.shape
    squeezed = tuple(size for size in shape if size != 1)
    nbytes = stored.nbytes
    if source.fused_row is not None:
        if len(shape) < 2 or shape[0] != len(LERPS):
            raise CheckpointError(
                path, f"tensor {quoted(stored.name)} has shape {list(shape)}, expected [6, D]"
            )
        shape, nbytes = (math.prod(shape[1:]),), nbytes // len(LERPS)
    elif source.is_transposed and len(shape) == 2:
        shape = (shape[1], shape[0])
    elif num_dims(name) == 1 and len(squeezed) <= 1 and len(shape) > 1:
        shape = squeezed or (1,)
    elif name.endswith(".att.r_k") and len(shape) == 1 and head_size and shape[0] % head_size == 0:
        shape = (shape[0] // head_size, head_size)
    return TensorInfo(name, shape, stored.type_name, nbytes)
