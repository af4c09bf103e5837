"""rwkv.cpp's `.bin` files (magic 0x67676d66, "ggmf"): https://github.com/RWKV/rwkv.cpp

Six int32 (magic, version, vocabulary, width, layers, type), then the tensors: three int32 (number
of dimensions, length of the name, type), the dimensions with the fastest first, the name, the data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rwkv_core.checkpoint.base import PLAIN_TYPES, TensorInfo, TranslatedCheckpoint
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Bytes, dequantize
from rwkv_core.checkpoint.names import RWKV_CPP
from rwkv_core.checkpoint.random_access import RandomAccessFile
from rwkv_core.errors import CheckpointError, quoted

MAGIC = struct.pack("<i", 0x67676D66)

_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q5_0", 8: "Q5_1", 9: "Q8_0"}
_REMOVED_TYPES = {4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3"}

# Version 100 stored quantized blocks in a layout that ggml has since given up.
_FIRST_VERSION, _VERSION = 100, 101

_HEADER = struct.Struct("<6i")
_TENSOR_HEADER = struct.Struct("<3i")
_MAX_NAME_BYTES = 256
_MAX_TENSORS = 20_000  # 61 layers have 1,900


class RwkvCppCheckpoint(TranslatedCheckpoint):
    """A model that rwkv.cpp's converter or quantizer wrote."""

    def __init__(self, path: Path) -> None:
        self._file = RandomAccessFile(path)
        try:
            stored, self._offsets = _read_index(self._file)
            super().__init__(path, "rwkv.cpp", RWKV_CPP, stored)
        except BaseException:
            self._file.close()
            raise
        self._stored = stored

    def _read_stored(self, stored_name: str) -> Tensor:
        info, offset = self._stored[stored_name], self._offsets[stored_name]
        if info.type_name in PLAIN_TYPES:
            return self._file.read_tensor(offset, info.shape, info.type_name)
        values = dequantize(info.type_name, self._file.read_array(offset, info.nbytes))
        return torch.from_numpy(values).reshape(info.shape)

    def _stored_slices(self, stored_name: str, slice_bytes: int) -> Iterator[Bytes]:
        nbytes = self._stored[stored_name].nbytes
        return self._file.read_slices(self._offsets[stored_name], nbytes, slice_bytes)

    def close(self) -> None:
        self._file.close()


def _read_index(file: RandomAccessFile) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    """Stored names -> infos and offsets of all tensors, each of them inside the file."""
    _, version, *_, type_id = _HEADER.unpack(file.read(0, _HEADER.size))
    if not _FIRST_VERSION <= version <= _VERSION:
        raise CheckpointError(file.path, f"is a rwkv.cpp file of the unknown version {version}")
    if version < _VERSION and type_id not in (0, 1):
        raise CheckpointError(
            file.path,
            "was quantized by an old rwkv.cpp in a layout since removed; quantize it again",
        )
    infos: dict[str, TensorInfo] = {}
    offsets: dict[str, int] = {}
    position = _HEADER.size
    while position < file.size:
        info, offset = _read_tensor_info(file, position)
        if info.name in infos or len(infos) == _MAX_TENSORS:
            raise CheckpointError(
                file.path, f"is damaged: tensor {quoted(info.name)} is one too many"
            )
        infos[info.name], offsets[info.name] = info, offset
        position = offset + info.nbytes
    return infos, offsets


def _read_tensor_info(file: RandomAccessFile, position: int) -> tuple[TensorInfo, int]:
    """The info of the tensor whose header is at `position`, and where its data begins."""
    header = file.read(position, _TENSOR_HEADER.size)
    num_dims, name_bytes, type_id = _TENSOR_HEADER.unpack(header)
    if not 1 <= num_dims <= 3 or not 1 <= name_bytes <= _MAX_NAME_BYTES:
        raise CheckpointError(
            file.path, f"is damaged at byte {position}: there is no tensor's header"
        )
    position += _TENSOR_HEADER.size
    # The fastest dimension comes first, in PyTorch's shapes last.
    sizes = struct.unpack(f"<{num_dims}i", file.read(position, 4 * num_dims))
    position += 4 * num_dims
    name = file.read(position, name_bytes).decode("utf-8", "backslashreplace")
    type_name = _TYPES.get(type_id)
    if type_name is None:
        shown = _REMOVED_TYPES.get(type_id, str(type_id))
        raise CheckpointError(
            file.path, f"stores tensor {quoted(name)} as type {shown}, which rwkv.cpp no longer has"
        )
    layout = LAYOUTS[type_name]
    if min(sizes) < 1 or sizes[0] % layout.values_per_block:
        raise CheckpointError(file.path, f"tensor {quoted(name)} has an impossible shape")
    nbytes = layout.num_bytes(math.prod(sizes))
    position += name_bytes
    if position + nbytes > file.size:
        raise CheckpointError(
            file.path, f"ends inside tensor {quoted(name)}: the file is truncated or damaged"
        )
    return TensorInfo(name, sizes[::-1], type_name, nbytes), position
