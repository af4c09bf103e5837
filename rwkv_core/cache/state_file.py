"""A snapshot as a safetensors file: its tokens, logits and state, each value to the bit.

A file may end with a note: bytes that mean something to whoever wrote it.

The metadata names the model, and holds a checksum of everything else: of the data, and of the
header without the checksum as JSON with sorted keys and no blanks.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rwkv_core.cache.key import FORMAT_VERSION, ModelKey
from rwkv_core.cache.snapshot import Snapshot, SnapshotKind
from rwkv_core.cache.tokens import TokenArray, TokenIds, as_tokens
from rwkv_core.config import ModelConfig
from rwkv_core.errors import StateFileError
from rwkv_core.own_memory import zero_floats
from rwkv_core.state import State

_FORMAT = "anser-state"

# In the order in which their data follow one another; tokens first, so that they can be read alone.
_DTYPES = {
    "tokens": torch.int32,
    "logits": torch.float32,
    "time_shift": torch.float32,
    "channel_shift": torch.float32,
    "wkv": torch.float32,
}
_NOTE = "note"  # behind them, where there is one
_NUM_DIMENSIONS = {
    "tokens": 1,
    "logits": 1,
    "time_shift": 3,
    "channel_shift": 3,
    "wkv": 5,
    _NOTE: 1,
}
_TYPE_NAMES = {torch.int32: "I32", torch.float32: "F32"}

# Ours have less than one kilobyte. The limit bounds what parsing hostile JSON can cost.
_MAX_HEADER_BYTES = 16 << 10

_HASH = re.compile("[0-9a-f]{64}")


class Source(Protocol):
    """A binary file, or bytes in memory, from the beginning on."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


@dataclass(frozen=True)
class EncodedState:
    """The parts of a file, one after the other. They share memory with the snapshot."""

    parts: Sequence[memoryview]
    checksum: str

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True)
class Head:
    """What a file says of itself before its data, with sizes that fit the file."""

    key: ModelKey
    kind: SnapshotKind
    checksum: str
    shapes: dict[str, tuple[int, ...]]  # without the note
    num_note_bytes: int
    checked: bytes  # of the header, for the checksum

    @property
    def num_tokens(self) -> int:
        return self.shapes["tokens"][0]


@dataclass(frozen=True)
class DecodedState:
    """The content of a file, in memory of its own."""

    head: Head
    tokens: TokenArray
    snapshot: Snapshot
    note: bytes


def encode_state(
    key: ModelKey,
    tokens: TokenArray,
    snapshot: Snapshot,
    kind: SnapshotKind,
    note: bytes = b"",
) -> EncodedState:
    """A file of a snapshot. Copies no tensor."""
    state = snapshot.state
    floats = (snapshot.logits, state.time_shift, state.channel_shift, state.wkv)
    data = [tokens.data.cast("B"), *map(_bytes_of, floats)]
    all_shapes = (tokens.shape, *(tuple(part.shape) for part in floats))
    shapes = dict(zip(_DTYPES, all_shapes, strict=True))
    metadata = {
        "format": _FORMAT,
        "version": str(FORMAT_VERSION),
        "model": key.model,
        "numerics": key.numerics,
        "kind": kind.name,
    }
    header = {"__metadata__": metadata, **_entries(shapes, len(note))}
    if note:
        data.append(memoryview(note))
    hasher = blake2b(_json(header), digest_size=32)
    for part in data:
        hasher.update(part)
    metadata["checksum"] = hasher.hexdigest()
    text = _json(header)
    text += b" " * (-len(text) % 8)  # the format's alignment
    return EncodedState(
        [memoryview(len(text).to_bytes(8, "little") + text), *data], metadata["checksum"]
    )


def read_head(source: Source, num_bytes: int) -> Head:
    """Reads the header of a file that has `num_bytes`. Raises StateFileError, OSError."""
    if num_bytes < 8:
        raise StateFileError("is too short for a saved state")
    header_bytes = int.from_bytes(_read(source, 8), "little")
    if header_bytes > min(num_bytes - 8, _MAX_HEADER_BYTES):
        raise StateFileError("has a header that is too large for a saved state")
    header = _parse(_read(source, header_bytes))
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise StateFileError("is no saved state of Anser")
    if metadata.get("version") != str(FORMAT_VERSION):
        raise StateFileError(f"is of another version than {FORMAT_VERSION}")
    shapes = {name: _shape(name, header.get(name)) for name in _DTYPES}
    if not _are_of_one_state(shapes):
        raise StateFileError("is damaged: the sizes of its tensors do not fit one another")
    num_note_bytes = _shape(_NOTE, header[_NOTE])[0] if _NOTE in header else 0
    checksum = metadata.pop("checksum", None)
    key = ModelKey(str(metadata.get("model")), str(metadata.get("numerics")))
    kinds = SnapshotKind.__members__
    if (
        header != {"__metadata__": metadata, **_entries(shapes, num_note_bytes)}
        or not all(isinstance(value, str) for value in (checksum, *metadata.values()))
        or not all(_HASH.fullmatch(value) for value in (checksum, key.model, key.numerics))
        or metadata.get("kind") not in kinds
    ):
        raise StateFileError("is damaged: its header is not as Anser writes it")
    data_bytes = sum(map(_num_bytes, shapes.values())) + num_note_bytes
    if 8 + header_bytes + data_bytes != num_bytes:
        raise StateFileError("is truncated or damaged: it is not as long as its tensors")
    kind = kinds[metadata["kind"]]
    return Head(key, kind, checksum, shapes, num_note_bytes, _json(header))


def read_tokens(source: Source, head: Head, at_most: int | None = None) -> TokenArray:
    """Reads the tokens, which follow the header; the first so many of them."""
    count = head.num_tokens if at_most is None else min(head.num_tokens, at_most)
    tokens: TokenArray = np.empty(count, np.int32)
    _fill(source, tokens.data.cast("B"))
    return tokens


def decode_state(source: Source, num_bytes: int) -> DecodedState:
    """Reads a file that has `num_bytes`, all of which count for its checksum.

    Takes no more memory than that. Raises StateFileError for what is not, to the bit, as it was
    written; OSError.
    """
    head = read_head(source, num_bytes)
    hasher = blake2b(head.checked, digest_size=32)
    tokens = read_tokens(source, head)
    hasher.update(tokens.data.cast("B"))
    names = [name for name in head.shapes if name != "tokens"]
    tensors = zero_floats([head.shapes[name] for name in names])
    for tensor in tensors:
        _fill(source, _bytes_of(tensor))
        hasher.update(_bytes_of(tensor))
    note = _read(source, head.num_note_bytes)
    hasher.update(note)
    if hasher.hexdigest() != head.checksum:
        raise StateFileError("is damaged: its checksum is another")
    parts = dict(zip(names, tensors, strict=True))
    logits = parts.pop("logits")
    return DecodedState(head, tokens, Snapshot(State(**parts), logits), note)


def save_state(key: ModelKey, tokens: TokenIds, snapshot: Snapshot) -> bytes:
    """The content of a file with which `load_state` goes on behind `tokens`."""
    encoded = encode_state(key, as_tokens(tokens), snapshot, SnapshotKind.REPLY_END)
    return b"".join(encoded.parts)


def load_state(
    data: bytes, key: ModelKey, config: ModelConfig, *, exact: bool = True
) -> tuple[TokenArray, Snapshot]:
    """Tokens and snapshot of a saved state of the model with this key.

    With `exact` False a state that other code or another processor has computed will do, too: it
    says the same, but not to the bit, and must not go into the cache. Raises StateFileError for
    any other.
    """
    decoded = load_state_file(BytesIO(data), len(data), key, config, exact=exact)
    return decoded.tokens, decoded.snapshot


def load_state_file(
    source: Source, num_bytes: int, key: ModelKey, config: ModelConfig, *, exact: bool = True
) -> DecodedState:
    """`load_state` from a file that has `num_bytes`, with its note. Raises OSError, too."""
    try:
        decoded = decode_state(source, num_bytes)
        _require_model(decoded, key, config, exact)
    except StateFileError as error:
        raise StateFileError(f"the saved state {error}") from None
    return decoded


def _require_model(decoded: DecodedState, key: ModelKey, config: ModelConfig, exact: bool) -> None:
    head, tokens, snapshot = decoded.head, decoded.tokens, decoded.snapshot
    if head.key.model != key.model:
        raise StateFileError("is of another model, tokenizer or initial state")
    if exact and head.key.numerics != key.numerics:
        raise StateFileError(
            "was computed by another processor or version, which rounds in another way"
        )
    shift = (config.n_layer, 1, config.n_embd)
    heads = (config.n_layer, 1, config.n_head, config.head_size, config.head_size)
    expected = {"logits": (config.vocab_size,), "time_shift": shift, "channel_shift": shift}
    for name, shape in {**expected, "wkv": heads}.items():
        if head.shapes[name] != shape:
            raise StateFileError(f"has {name} of shape {head.shapes[name]}; the model's is {shape}")
    if not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
        raise StateFileError("has tokens that are not in the model's vocabulary")
    state = snapshot.state
    for part in (snapshot.logits, state.time_shift, state.channel_shift, state.wkv):
        if not bool(torch.isfinite(part).all()):
            raise StateFileError("has values that are not finite")


def _entries(shapes: dict[str, tuple[int, ...]], num_note_bytes: int) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _num_bytes(shape)
        entries[name] = {
            "dtype": _TYPE_NAMES[_DTYPES[name]],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    if num_note_bytes:
        offsets = [end, end + num_note_bytes]
        entries[_NOTE] = {"dtype": "U8", "shape": [num_note_bytes], "data_offsets": offsets}
    return entries


def _shape(name: str, entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if (
        not isinstance(shape, list)
        or len(shape) != _NUM_DIMENSIONS.get(name, 1)
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        raise StateFileError(f"is damaged: its entry for {name} is malformed")
    return tuple(shape)


def _are_of_one_state(shapes: dict[str, tuple[int, ...]]) -> bool:
    n_layer, batch_size, n_embd = shapes["time_shift"]
    n_head, head_size = shapes["wkv"][2:4]
    return (
        batch_size == 1
        and n_head * head_size == n_embd
        and shapes["channel_shift"] == shapes["time_shift"]
        and shapes["wkv"] == (n_layer, 1, n_head, head_size, head_size)
    )


def _num_bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)  # both types have four bytes


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _parse(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        raise StateFileError("is damaged: its header is not JSON") from None
    if not isinstance(parsed, dict):
        raise StateFileError("is damaged: its header is no JSON object")
    return parsed


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's memory, to be read or written."""
    return tensor.numpy().data.cast("B")


def _read(source: Source, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    _fill(source, memoryview(data))
    return bytes(data)


def _fill(source: Source, buffer: memoryview) -> None:
    while buffer:
        count = source.readinto(buffer)
        if not count:
            raise StateFileError("ends too early: it is truncated")
        buffer = buffer[count:]
