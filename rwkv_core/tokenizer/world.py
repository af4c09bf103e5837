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

_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
_ESCAPED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}

# Bytes that valid UTF-8 consists of: all but C0, C1 and F5 to FF.
_TEXT_BYTES = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}


class WorldTokenizer:
    """Greedy longest match over the bytes of `tokens` (id -> bytes; None or b"" for an unused id).

    Id 0 is the end of text and never comes out of `encode`, whatever `tokens[0]` says. Raises
    TokenizerError when some text could not be written with the vocabulary.
    """

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        self._tokens: tuple[bytes, ...] = (b"", *(token or b"" for token in tokens[1:]))
        # Of two ids with the same bytes the later one is used, as in the authors' tokenizer.
        self._ids = {token: index for index, token in enumerate(self._tokens) if token}
        missing = sorted(byte for byte in _TEXT_BYTES if bytes((byte,)) not in self._ids)
        if missing:
            raise TokenizerError(
                f"the vocabulary has no token for the single byte 0x{missing[0]:02x} "
                f"({len(missing)} bytes are missing); use the vocabulary the model was trained with"
            )
        self._longest = max(map(len, self._tokens))
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
        """The inverse of `from_gguf`, with llama.cpp's names for the end of text and for unused
        ids.
        """
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
        ids, lengths_of, longest = self._ids, self._lengths, self._longest
        position, result = 0, []
        while position < len(data):
            lengths: tuple[int, ...] = (1,)
            size = 2
            while size <= longest:
                found = lengths_of.get(data[position : position + size])
                if found is None:
                    break
                lengths, size = found, 2 * size
            for length in lengths:
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


def _lengths_by_prefix(ids: dict[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """For every prefix of 2, 4, 8 … bytes of a token: the lengths to try, longest first.

    They are those of the tokens that begin so and are shorter than the next prefix size, then the
    length of the longest token inside the prefix. So the longest known prefix of a text leads to
    its longest token, with a few slices and dictionary lookups: in Python far faster than a trie,
    byte by byte. The Rust trie of pyrwkv-tokenizer is ten times faster still, but reads only its
    own vocabulary file, keeps 16-bit ids and takes 236 MB for the World vocabulary; this index
    takes 13.
    """
    # Sets of lengths as bits of a number, and one tuple for all prefixes that have the same: a
    # hundred thousand sets are slow to build, and slower under the garbage collector's eyes.
    lengths: dict[bytes, int] = {}
    for token in ids:
        size = 2
        while 2 * size <= len(token):
            lengths.setdefault(token[:size], 0)
            size *= 2
        if size <= len(token):
            lengths[token[:size]] = lengths.get(token[:size], 0) | 1 << len(token)
    shared: dict[tuple[int, int], tuple[int, ...]] = {}
    result = {}
    for prefix, found in lengths.items():
        key = (found, _longest_inside(prefix, ids))
        if key not in shared:
            longest_first = range(found.bit_length() - 1, 0, -1)
            shared[key] = (*(size for size in longest_first if found >> size & 1), key[1])
        result[prefix] = shared[key]
    return result


def _longest_inside(prefix: bytes, ids: dict[bytes, int]) -> int:
    for length in range(len(prefix) - 1, 0, -1):
        if prefix[:length] in ids:
            return length
    return 1


def _unescape(token: str, index: int) -> bytes:
    """Bytes of a token; like llama.cpp, any other escaped character stands for itself."""

    def replace(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        if escape in (b"", b"x"):
            raise TokenizerError(f"token {index} of the vocabulary has a broken escape: {token!r}")
        if len(escape) == 3:
            return bytes((int(escape[1:], 16),))
        return _ESCAPED.get(escape, escape)

    data = token.encode()
    return _ESCAPE.sub(replace, data) if b"\\" in data else data


@cache
def _world() -> WorldTokenizer:
    spec = find_spec("rwkv")  # the authors' package, of which only this file is read
    if spec is None or spec.origin is None:
        raise TokenizerError("the World vocabulary is missing; pip install rwkv")
    tokens: list[bytes | None] = [None] * WORLD_VOCAB_SIZE
    vocabulary = Path(spec.origin).parent / "rwkv_vocab_v20230424.txt"
    for line in vocabulary.read_text(encoding="utf-8").split("\n")[:-1]:
        index, _, rest = line.partition(" ")
        literal = ast.literal_eval(rest.rpartition(" ")[0])
        tokens[int(index)] = literal.encode() if isinstance(literal, str) else literal
    return WorldTokenizer(tokens)
