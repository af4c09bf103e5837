"""The authors' `.pth` files: what `torch.save` writes, a zip archive of a pickle and raw storages.

Only the archive's list and its pickle are read on opening, the pickle as plain data (see
`pickled_tensors`). A tensor is read straight from its storage's place in the file.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rwkv_core.checkpoint.base import (
    PLAIN_TYPES,
    TensorInfo,
    TranslatedCheckpoint,
    choose_naming,
    plain_size,
    tensor_bytes,
    unreadable_type,
)
from rwkv_core.checkpoint.ggml_blocks import Bytes
from rwkv_core.checkpoint.pickled_tensors import PickledTensor, PickleError, read_pickled_tensors
from rwkv_core.checkpoint.random_access import RandomAccessFile
from rwkv_core.errors import CheckpointError, quoted

# The pickle and the archive's list of a 61-layer model have 0.5 MB each. The limits bound what a
# hostile file can make us hold.
_MAX_PICKLE_BYTES = 16 << 20
_MAX_LIST_BYTES = 4 << 20

_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class _Place:
    """Where a tensor's numbers are in the file."""

    offset: int
    span: int  # items from its first to its last number, gaps of its strides included
    strides: tuple[int, ...]


class PthCheckpoint(TranslatedCheckpoint):
    """A model in a `.pth` file, opened without running anything in it."""

    def __init__(self, path: Path) -> None:
        self._file = RandomAccessFile(path)
        try:
            stored, self._places = _read_index(self._file)
            super().__init__(path, "pth", choose_naming(stored), stored)
        except BaseException:
            self._file.close()
            raise
        self._stored = stored

    def _read_stored(self, stored_name: str) -> Tensor:
        info, place = self._stored[stored_name], self._places[stored_name]
        items = self._file.read_tensor(place.offset, (place.span,), info.type_name)
        return items.as_strided(info.shape, place.strides)

    def _stored_slices(self, stored_name: str, slice_bytes: int) -> Iterator[Bytes]:
        info, place = self._stored[stored_name], self._places[stored_name]
        if place.strides == _c_strides(info.shape):
            return self._file.read_slices(place.offset, info.nbytes, slice_bytes)
        packed = tensor_bytes(self._read_stored(stored_name).contiguous())
        return (packed[at : at + slice_bytes] for at in range(0, packed.size, slice_bytes))

    def close(self) -> None:
        self._file.close()


class _Archive:
    """The records of torch.save's zip archive, which are never compressed."""

    def __init__(self, file: RandomAccessFile) -> None:
        self._file = file
        try:
            records = zipfile.ZipFile(_BoundedReader(file), "r").infolist()
        except CheckpointError:
            raise
        except Exception as error:  # zipfile raises at least six kinds for a damaged list
            problem = f"is a damaged or truncated .pth archive ({error})"
            raise CheckpointError(file.path, problem) from None
        pickles = [r.filename for r in records if r.filename.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise CheckpointError(file.path, "is a zip archive, but none that torch.save wrote")
        self._root = pickles[0].partition("/")[0]
        self._records = {record.filename: record for record in records}

    def find(self, name: str) -> tuple[int, int]:
        """Offset and size of a record; CheckpointError if it is not there in full."""
        record = self._records.get(f"{self._root}/{name}")
        if record is None:
            raise CheckpointError(
                self._file.path, f"is damaged: it lacks the record {quoted(name)}"
            )
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise CheckpointError(
                self._file.path, "is a compressed archive; PyTorch reads and writes plain ones only"
            )
        header = self._file.read(record.header_offset, _LOCAL_HEADER_BYTES)
        if header[:4] != b"PK\x03\x04":
            raise CheckpointError(
                self._file.path, f"is damaged: no record begins at {quoted(name)}"
            )
        name_bytes = int.from_bytes(header[26:28], "little")
        extra_bytes = int.from_bytes(header[28:30], "little")
        offset = record.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if offset + record.file_size > self._file.size:
            raise CheckpointError(
                self._file.path, f"ends inside the record {quoted(name)}: the file is truncated"
            )
        return offset, record.file_size

    def has(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._records


class _BoundedReader:
    """A file for `zipfile`, which reads as much at once as the archive's last bytes tell it to."""

    def __init__(self, file: RandomAccessFile) -> None:
        self._file = file
        self._position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self._position, self._file.size)[whence]
        if position < 0:
            raise OSError("seek before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self._file.size - self._position)
        size = rest if size < 0 else min(size, rest)
        if size > _MAX_LIST_BYTES:
            raise CheckpointError(self._file.path, "is an archive of too many records for a model")
        data = self._file.read(self._position, size)
        self._position += size
        return data


def _read_index(file: RandomAccessFile) -> tuple[dict[str, TensorInfo], dict[str, _Place]]:
    """Stored names -> infos and places of all tensors, each of them inside the file."""
    archive = _Archive(file)
    if archive.has("byteorder") and file.read(*archive.find("byteorder")) != b"little":
        raise CheckpointError(
            file.path, "was saved on a big-endian machine; save it again elsewhere"
        )
    offset, size = archive.find("data.pkl")
    if size > _MAX_PICKLE_BYTES:
        raise CheckpointError(file.path, f"has a pickle of {size} bytes, more than tensors need")
    try:
        tensors = read_pickled_tensors(file.read(offset, size))
    except PickleError as error:
        raise CheckpointError(file.path, str(error)) from None
    if not tensors:
        raise CheckpointError(file.path, "holds no tensors")
    infos: dict[str, TensorInfo] = {}
    places: dict[str, _Place] = {}
    for name, tensor in tensors.items():
        infos[name], places[name] = _locate(file.path, archive, name, tensor)
    return infos, places


def _locate(
    path: Path, archive: _Archive, name: str, tensor: PickledTensor
) -> tuple[TensorInfo, _Place]:
    """Checks one tensor against its storage, and the storage against the file."""
    if tensor.type_name not in PLAIN_TYPES:
        raise unreadable_type(path, name, tensor.type_name)
    item_bytes = PLAIN_TYPES[tensor.type_name].itemsize
    storage_offset, storage_bytes = archive.find(f"data/{tensor.storage_key}")
    # No more numbers than the storage has: a stride of 0 repeats one number without end.
    nbytes = plain_size(path, name, tensor.shape, tensor.type_name, storage_bytes)
    if len(tensor.strides) != len(tensor.shape) or any(stride < 0 for stride in tensor.strides):
        raise CheckpointError(path, f"tensor {quoted(name)} has impossible strides")
    span = 0
    if nbytes:
        span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset < 0 or (tensor.offset + span) * item_bytes > storage_bytes:
        raise CheckpointError(path, f"tensor {quoted(name)} reaches beyond its storage")
    place = _Place(storage_offset + tensor.offset * item_bytes, span, tensor.strides)
    return TensorInfo(name, tensor.shape, tensor.type_name, nbytes), place


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor that lies in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
