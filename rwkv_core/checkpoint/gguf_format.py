"""Constants of the GGUF container (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from __future__ import annotations

from enum import IntEnum

MAGIC = b"GGUF"
VERSION = 3  # written; version 2 differs only in that it never was big-endian, and is read as well
READ_VERSIONS = (2, 3)

ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32

# ggml's GGML_MAX_DIMS and GGML_MAX_NAME (with the closing zero byte).
MAX_DIMS = 4
MAX_NAME_BYTES = 63

ARCHITECTURE = "rwkv7"

# What llama.cpp's converter writes for models whose context nothing limits.
UNLIMITED_CONTEXT = 1 << 20


class ValueType(IntEnum):
    """Types of metadata values, by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# Little-endian `struct` codes of the types of fixed size.
SCALAR_CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


def align(offset: int, alignment: int) -> int:
    """The next multiple of `alignment` from `offset` on."""
    return -(-offset // alignment) * alignment
