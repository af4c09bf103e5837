"""An RWKV-7 model in a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from rwkv_core.checkpoint.base import PLAIN_TYPES, TensorInfo, TranslatedCheckpoint
from rwkv_core.checkpoint.ggml_blocks import Bytes, dequantize
from rwkv_core.checkpoint.gguf_file import GGUFFile
from rwkv_core.checkpoint.gguf_format import ARCHITECTURE
from rwkv_core.checkpoint.gguf_header import GGUFTensor
from rwkv_core.checkpoint.names import GGUF
from rwkv_core.errors import CheckpointError, quoted

# Architectures of llama.cpp that a user may take for RWKV-7.
_RELATIVES = {
    "rwkv6": "an RWKV-6",
    "rwkv6qwen2": "an RWKV-6 hybrid (QRWKV)",
    "arwkv7": "an RWKV-7 hybrid (ARWKV)",
}

_HEAD_SIZE_KEY = f"{ARCHITECTURE}.wkv.head_size"


class GGUFCheckpoint(TranslatedCheckpoint):
    """An RWKV-7 model in a GGUF file. Raises CheckpointError for any other model."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = GGUFFile(path, check_metadata=_foreign_model)
        try:
            super().__init__(
                self._file.path,
                "gguf",
                GGUF,
                {tensor.name: _info(tensor) for tensor in self._file.tensors.values()},
                metadata=self._file.metadata,
                head_size=_head_size(self._file),
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def _read_stored(self, stored_name: str) -> Tensor:
        tensor, packed = self._file.tensors[stored_name], self._file.raw(stored_name)
        num_values = prod(tensor.shape)
        if tensor.layout.is_quantized:
            values = torch.empty(num_values, dtype=torch.float32)
            dequantize(tensor.layout.name, packed, values.numpy())
        else:
            values = torch.empty(num_values, dtype=PLAIN_TYPES[tensor.layout.name])
            values.view(torch.uint8).numpy()[:] = packed
        self._file.forget(stored_name)
        return values.view(tensor.shape)

    def _stored_slices(self, stored_name: str, slice_bytes: int) -> Iterator[Bytes]:
        packed = self._file.raw(stored_name)
        for start in range(0, packed.size, slice_bytes):
            part = packed[start : start + slice_bytes]
            yield part
            self._file.forget(stored_name, start, part.size)


def _info(tensor: GGUFTensor) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.shape, tensor.layout.name, tensor.nbytes)


def _head_size(file: GGUFFile) -> int:
    """N of r_k, which files store flat: the one size that no tensor's shape tells."""
    value = file.metadata.get(_HEAD_SIZE_KEY)
    if type(value) is not int or value <= 0:
        raise CheckpointError(
            file.path,
            f"has no usable {_HEAD_SIZE_KEY} ({quoted(str(value))}); convert the model again",
        )
    return value


def _foreign_model(metadata: Mapping[str, Any]) -> str | None:
    """What keeps Anser from running a file with this metadata; None for an RWKV-7 model."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        return "does not say what model it holds (general.architecture); Anser runs RWKV-7"
    if architecture in _RELATIVES:
        return f"holds {_RELATIVES[architecture]} model ({architecture}); Anser runs RWKV-7"
    if architecture != ARCHITECTURE:
        return f"holds a {quoted(architecture)[1:-1]} model; Anser runs RWKV-7"
    kind = metadata.get("general.type", "model")
    if kind != "model":
        return f"holds no whole model but {quoted(str(kind))} (general.type); Anser runs models"
    num_parts = metadata.get("split.count", 1)
    if isinstance(num_parts, int) and num_parts > 1:
        return f"is one of {num_parts} parts of a model; join them with llama-gguf-split --merge"
    return None
