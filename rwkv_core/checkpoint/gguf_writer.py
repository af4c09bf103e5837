"""Writes GGUF files in one pass: declare everything, then hand over the tensors' bytes in order."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO

from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, BlockLayout, Bytes
from rwkv_core.checkpoint.gguf_format import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_NAME_BYTES,
    SCALAR_CODES,
    VERSION,
    ValueType,
    align,
)
from rwkv_core.errors import CheckpointError

MetadataValue = str | bool | int | float | list[str] | list[int] | list[float]


@dataclass(frozen=True)
class _Declared:
    name: str
    shape: tuple[int, ...]  # PyTorch's order
    layout: BlockLayout
    offset: int  # from the start of the data

    @property
    def nbytes(self) -> int:
        return self.layout.num_bytes(prod(self.shape))


class GGUFWriter:
    """A GGUF file that appears under `path` whole or not at all.

    Use it as a context manager: `add_…` everything, then `write_tensor` once for every tensor, in
    the order in which they were added. The bytes go to a hidden file beside `path`; leaving the
    block puts it on the disk and renames it, leaving it by an exception (Ctrl-C too) deletes it.
    `progress` gets (bytes of tensors written, bytes of all tensors) after every piece.
    Raises CheckpointError when the system cannot write, ValueError for wrong use.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self._progress = progress
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, _Declared] = {}
        self._pending: Iterator[_Declared] | None = None  # set once the header is written
        self._data_bytes = 0
        self._num_done = 0
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        self._file: IO[bytes] | None = None

    def add_metadata(self, key: str, value: MetadataValue) -> None:
        """Declares a key. Integers are written as UINT32 where they fit and as INT64 where not,
        lists of them as INT32 (as llama.cpp expects them), floats as FLOAT32."""
        if self._pending is not None or key in self._metadata:
            raise ValueError(f"the metadata {key} comes twice or too late")
        self._metadata[key] = _encode_typed(value)

    def add_tensor(self, name: str, shape: Sequence[int], type_name: str) -> None:
        """Declares a tensor; `shape` is in PyTorch's order."""
        layout = LAYOUTS[type_name]
        if self._pending is not None or name in self._tensors:
            raise ValueError(f"the tensor {name} comes twice or too late")
        if len(name.encode()) > MAX_NAME_BYTES or not 0 < len(shape) <= MAX_DIMS:
            raise ValueError(f"the name or the shape of {name} does not fit GGUF")
        if shape[-1] % layout.values_per_block:
            raise ValueError(f"rows of {shape[-1]} values do not fill {type_name} blocks: {name}")
        declared = _Declared(name, tuple(shape), layout, align(self._data_bytes, DEFAULT_ALIGNMENT))
        self._tensors[name] = declared
        self._data_bytes = declared.offset + declared.nbytes

    def write_tensor(self, name: str, pieces: Iterable[Bytes]) -> None:
        """Writes the next declared tensor, `name`, as its encoded bytes in pieces of any size."""
        with self._naming_the_file():
            if self._pending is None:
                self._write_header()
            assert self._pending is not None
            declared = next(self._pending, None)
            if declared is None or declared.name != name:
                raise ValueError(f"the tensor {name} is not the next one that was declared")
            num_bytes = self._write_pieces(pieces)
            if num_bytes != declared.nbytes:
                raise ValueError(f"{name} has {num_bytes} bytes instead of {declared.nbytes}")
            self._pad(declared.nbytes)

    def __enter__(self) -> GGUFWriter:
        with self._naming_the_file():
            # Not tempfile: the result gets the permissions of any file that the user makes.
            self._file = self._temporary.open("xb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with self._naming_the_file():
                    self._finish()
        finally:
            self._open_file.close()
            # After a rename there is nothing under this name.
            with suppress(OSError):
                self._temporary.unlink()

    @property
    def _open_file(self) -> IO[bytes]:
        if self._file is None:
            raise ValueError("a GGUFWriter is a context manager")
        return self._file

    def _write_header(self) -> None:
        parts = [MAGIC, _U32.pack(VERSION), _U64.pack(len(self._tensors))]
        parts.append(_U64.pack(len(self._metadata)))
        for key, encoded in self._metadata.items():
            parts += [_encode(key, ValueType.STRING), encoded]
        for tensor in self._tensors.values():
            parts += [_encode(tensor.name, ValueType.STRING), _U32.pack(len(tensor.shape))]
            parts += [_U64.pack(size) for size in reversed(tensor.shape)]
            parts += [_U32.pack(tensor.layout.type_id), _U64.pack(tensor.offset)]
        header = b"".join(parts)
        self._open_file.write(header)
        self._pad(len(header))
        self._pending = iter(self._tensors.values())

    def _write_pieces(self, pieces: Iterable[Bytes]) -> int:
        total = sum(tensor.nbytes for tensor in self._tensors.values())
        num_bytes = 0
        for piece in pieces:
            self._open_file.write(piece.data)
            num_bytes += piece.nbytes
            self._num_done += piece.nbytes
            if self._progress is not None:
                self._progress(self._num_done, total)
        return num_bytes

    def _pad(self, num_bytes: int) -> None:
        self._open_file.write(bytes(align(num_bytes, DEFAULT_ALIGNMENT) - num_bytes))

    def _finish(self) -> None:
        if self._pending is None:
            self._write_header()
        assert self._pending is not None
        missing = next(self._pending, None)
        if missing is not None:
            raise ValueError(f"the tensor {missing.name} was declared and never written")
        self._open_file.flush()
        os.fsync(self._open_file.fileno())
        self._open_file.close()
        self._temporary.replace(self.path)
        _sync_folder(self.path.parent)

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(self.path, f"cannot be written: {error.strerror}") from error


_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def _encode_typed(value: MetadataValue) -> bytes:
    if not isinstance(value, list):
        kind = _type_of(value)
        return _U32.pack(kind) + _encode(value, kind)
    kind = (
        ValueType.INT32 if value and type(value[0]) is int else _type_of(value[0] if value else "")
    )
    head = _U32.pack(ValueType.ARRAY) + _U32.pack(kind) + _U64.pack(len(value))
    return head + b"".join(_encode(element, kind) for element in value)


def _type_of(value: str | bool | int | float) -> ValueType:
    if isinstance(value, str):
        return ValueType.STRING
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, float):
        return ValueType.FLOAT32
    return ValueType.UINT32 if 0 <= value < 1 << 32 else ValueType.INT64


def _encode(value: str | bool | int | float, kind: ValueType) -> bytes:
    if kind is ValueType.STRING:
        encoded = str(value).encode()
        return _U64.pack(len(encoded)) + encoded
    try:
        return struct.pack(f"<{SCALAR_CODES[kind]}", value)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{value!r} is no {kind.name}") from error


def _sync_folder(folder: Path) -> None:
    """Puts a rename on the disk, where the system can (Windows cannot open folders)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
