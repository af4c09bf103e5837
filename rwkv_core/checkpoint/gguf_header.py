"""Parses the header of a GGUF file: metadata, and where every tensor lies.

The file is untrusted. Every count and length is held against the bytes that are left before
anything is allocated for it, and against limits far above any real model, so that a hostile header
costs neither memory nor time.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, LAYOUTS_BY_ID, UNSUPPORTED_TYPES, BlockLayout
from rwkv_core.checkpoint.gguf_format import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_NAME_BYTES,
    READ_VERSIONS,
    SCALAR_CODES,
    ValueType,
    align,
)
from rwkv_core.errors import CheckpointError, quoted

# The largest real headers (250,000 tokens with scores, types and merges) have 2 million array
# elements in 20 MB, 2,000 tensors and 60 keys.
_MAX_HEADER_BYTES = 256 << 20
_MAX_ARRAY_ELEMENTS = 1 << 22  # of all arrays together
_MAX_ENTRIES = 1 << 16  # keys, and tensors
_MAX_KEY_BYTES = 1 << 16
_MAX_ARRAY_DEPTH = 3
_MAX_ALIGNMENT = 1 << 30

# A key has a length, a type and a value of a byte or more; a tensor a length, a dimension count, a
# dimension, a type and an offset.
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor as the file names it. `shape` is in PyTorch's order, the reverse of the file's."""

    name: str
    shape: tuple[int, ...]
    layout: BlockLayout
    offset: int  # from the start of the file
    nbytes: int


@dataclass(frozen=True)
class Header:
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]


def parse_header(
    path: str | os.PathLike[str],
    data: mmap.mmap,
    check_metadata: Callable[[Mapping[str, Any]], str | None] = lambda _: None,
) -> Header:
    """Reads the header in `data`, the whole file.

    `check_metadata` sees the metadata before the tensors are looked at and returns what is wrong
    with it, if anything. Raises CheckpointError for a file that breaks the format.
    """
    cursor = _Cursor(path, data)
    version = _parse_version(cursor)
    cursor.place = "the tensor count"
    num_tensors = cursor.count(_MIN_TENSOR_BYTES, _MAX_ENTRIES)
    cursor.place = "the metadata count"
    num_keys = cursor.count(_MIN_KEY_BYTES, _MAX_ENTRIES)
    metadata = _parse_metadata(cursor, num_keys)
    problem = check_metadata(metadata)
    if problem is not None:
        raise CheckpointError(path, problem)
    return Header(
        version, metadata, _parse_tensors(cursor, num_tensors, _alignment(path, metadata))
    )


class _Cursor:
    """Reads forward through the header. `place` says in errors what is being read."""

    def __init__(self, path: str | os.PathLike[str], data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0
        self.end = min(len(data), _MAX_HEADER_BYTES)
        self.elements_left = _MAX_ARRAY_ELEMENTS
        self.place = "the header"

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(self.path, f"is a damaged GGUF file: {problem}")

    def require(self, num_bytes: int) -> None:
        """Fails unless that many bytes are left."""
        if num_bytes <= self.end - self.position:
            return
        if num_bytes > len(self.data) - self.position:
            self.fail(f"it ends inside {self.place}")
        self.fail(f"the header is larger than {_MAX_HEADER_BYTES >> 20} MB, at {self.place}")

    def take(self, num_bytes: int) -> bytes:
        self.require(num_bytes)
        start, self.position = self.position, self.position + num_bytes
        return self.data[start : self.position]

    def u32(self) -> int:
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack(self.take(8))[0]
        return value

    def count(self, min_bytes: int, limit: int) -> int:
        """A number of things that take at least `min_bytes` each and follow in the file."""
        number = self.u64()
        if number > limit:
            self.fail(f"{self.place} is {number}, more than {limit}")
        self.require(number * min_bytes)
        return number

    def string(self) -> str:
        return self.text(self.take(self.u64()))

    def text(self, encoded: bytes) -> str:
        try:
            return encoded.decode()
        except UnicodeDecodeError:
            self.fail(f"{self.place} is not UTF-8")

    def value_type(self) -> ValueType:
        number = self.u32()
        try:
            return ValueType(number)
        except ValueError:
            self.fail(f"{self.place} has the unknown type {number}")

    def value(self) -> Any:
        kind = self.value_type()
        if kind is ValueType.STRING:
            return self.string()
        if kind is ValueType.ARRAY:
            return self.array(depth=1)
        return self.scalars(kind, 1)[0]

    def scalars(self, kind: ValueType, number: int) -> tuple[Any, ...]:
        code = f"<{number}{SCALAR_CODES[kind]}"
        return struct.unpack(code, self.take(struct.calcsize(code)))

    def array(self, depth: int) -> list[Any]:
        if depth > _MAX_ARRAY_DEPTH:
            self.fail(f"{self.place} nests arrays more than {_MAX_ARRAY_DEPTH} deep")
        kind = self.value_type()
        # A string takes at least its length, an inner array its type and length.
        smallest = {ValueType.STRING: 8, ValueType.ARRAY: 12}.get(kind) or struct.calcsize(
            SCALAR_CODES[kind]
        )
        number = self.u64()
        if number > self.elements_left:
            self.fail(f"{self.place} has {number} elements, too many for a model")
        self.elements_left -= number
        self.require(number * smallest)
        if kind is ValueType.STRING:
            return self.strings(number)
        if kind is ValueType.ARRAY:
            return [self.array(depth + 1) for _ in range(number)]
        return list(self.scalars(kind, number))

    def strings(self, number: int) -> list[str]:
        # A vocabulary is 65,536 strings: this loop is `string` with everything in local variables.
        data, end, position, length_at = self.data, self.end, self.position, _U64.unpack_from
        found: list[str] = []
        for _ in range(number):
            start = position + 8
            if start > end:
                self.fail(f"it ends inside {self.place}")
            position = start + length_at(data, position)[0]
            if position > end:
                self.fail(f"it ends inside {self.place}")
            try:
                found.append(data[start:position].decode())
            except UnicodeDecodeError:
                self.fail(f"{self.place} is not UTF-8")
        self.position = position
        return found


def _parse_version(cursor: _Cursor) -> int:
    if cursor.data[: len(MAGIC)] != MAGIC:
        raise CheckpointError(
            cursor.path, "is no GGUF file: it does not begin with the letters GGUF"
        )
    cursor.position = len(MAGIC)
    version = cursor.u32()
    if version & 0xFFFF == 0 and version:
        raise CheckpointError(
            cursor.path, "is a big-endian GGUF file; Anser reads little-endian ones, so convert it"
        )
    if version not in READ_VERSIONS:
        raise CheckpointError(
            cursor.path, f"is GGUF version {version}; Anser reads versions 2 and 3, so convert it"
        )
    return version


def _parse_metadata(cursor: _Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for number in range(num_keys):
        cursor.place = f"metadata key {number}"
        length = cursor.u64()
        if not 0 < length <= _MAX_KEY_BYTES:
            cursor.fail(f"{cursor.place} is {length} bytes long")
        key = cursor.text(cursor.take(length))
        cursor.place = f"the metadata {quoted(key)}"
        if key in metadata:
            cursor.fail(f"{cursor.place} comes twice")
        metadata[key] = cursor.value()
    return metadata


def _alignment(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(alignment) is int and 0 < alignment <= _MAX_ALIGNMENT and alignment.bit_count() == 1:
        return alignment
    raise CheckpointError(
        path,
        f"is a damaged GGUF file: {ALIGNMENT_KEY} is {quoted(str(alignment))}, no power of two",
    )


def _parse_tensors(cursor: _Cursor, num_tensors: int, alignment: int) -> dict[str, GGUFTensor]:
    declared: dict[str, GGUFTensor] = {}  # offsets from the start of the data
    for number in range(num_tensors):
        cursor.place = f"the description of tensor {number}"
        tensor = _parse_tensor(cursor, alignment)
        if tensor.name in declared:
            cursor.fail(f"the tensor {quoted(tensor.name)} comes twice")
        declared[tensor.name] = tensor
    data_start = align(cursor.position, alignment)
    return _placed(cursor, declared, data_start)


def _parse_tensor(cursor: _Cursor, alignment: int) -> GGUFTensor:
    length = cursor.u64()
    if not 0 < length <= MAX_NAME_BYTES:
        cursor.fail(f"{cursor.place} has a name of {length} bytes")
    name = cursor.text(cursor.take(length))
    cursor.place = f"the tensor {quoted(name)}"
    num_dims = cursor.u32()
    if not 0 < num_dims <= MAX_DIMS:
        cursor.fail(f"{cursor.place} has {num_dims} dimensions")
    shape = tuple(reversed([cursor.u64() for _ in range(num_dims)]))
    type_id = cursor.u32()
    offset = cursor.u64()
    layout = LAYOUTS_BY_ID.get(type_id)
    if layout is None:
        kind = UNSUPPORTED_TYPES.get(type_id, f"number {type_id}")
        raise CheckpointError(
            cursor.path,
            f"{cursor.place} has the type {kind}, which Anser cannot read; use a file of the types "
            f"{', '.join(LAYOUTS)}",
        )
    num_values = prod(shape)
    if not 0 < num_values < 1 << 63:
        cursor.fail(f"{cursor.place} has the impossible shape {list(shape)}")
    if shape[-1] % layout.values_per_block:
        cursor.fail(f"{cursor.place} has rows of {shape[-1]} values, no whole {layout.name} blocks")
    if offset % alignment:
        cursor.fail(f"{cursor.place} begins at {offset}, no multiple of the alignment {alignment}")
    return GGUFTensor(name, shape, layout, offset, layout.num_bytes(num_values))


def _placed(
    cursor: _Cursor, declared: Mapping[str, GGUFTensor], data_start: int
) -> dict[str, GGUFTensor]:
    """The tensors with offsets from the start of the file, none past its end or over another."""
    placed: dict[str, GGUFTensor] = {}
    previous_end, previous = data_start, ""
    for tensor in sorted(declared.values(), key=lambda tensor: tensor.offset):
        start = data_start + tensor.offset
        if start + tensor.nbytes > len(cursor.data):
            cursor.fail(
                f"the tensor {quoted(tensor.name)} ends at byte {start + tensor.nbytes}, the file "
                f"at {len(cursor.data)}; copy or download it again"
            )
        if start < previous_end:
            cursor.fail(f"the tensors {quoted(previous)} and {quoted(tensor.name)} overlap")
        previous_end, previous = start + tensor.nbytes, tensor.name
        placed[tensor.name] = GGUFTensor(
            tensor.name, tensor.shape, tensor.layout, start, tensor.nbytes
        )
    return {name: placed[name] for name in declared}
