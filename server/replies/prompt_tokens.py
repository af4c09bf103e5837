"""Prompts as tokens, without tokenizing at every turn what the turns before have tokenized."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rwkv_core.cache import TokenArray
from rwkv_core.tokenizer import Tokenizer, WorldTokenizer
from rwkv_core.tokenizer.base import without_surrogates

Ends = npt.NDArray[np.int64]

# Texts that are remembered, by number and by size: enough for the chats of a busy server.
_MAX_TEXTS = 64
_MAX_BYTES = 32 << 20
# What a text may have beyond what a new one repeats, to go when that one is remembered: tokenizing
# so much again takes 0.1 ms. A chat whose turns each end in an opening of the next one so has one
# text in memory, not as many as turns.
_MAX_LOST_BYTES = 256


@dataclass(frozen=True, eq=False)
class EncodedText:
    """`tokens` [T] int32, and `ends` [T], where each ends in the bytes of the text."""

    data: bytes
    tokens: TokenArray
    ends: Ends

    @property
    def num_bytes(self) -> int:
        return len(self.data) + self.tokens.nbytes + self.ends.nbytes

    def num_tokens_in(self, num_bytes: int) -> int:
        """How many tokens end within the first so many bytes."""
        return int(np.searchsorted(self.ends, num_bytes, side="right"))

    def num_tokens_in_chars(self, num_chars: Sequence[int]) -> list[int]:
        """For each number of characters, how many tokens end within the first so many of them."""
        num_bytes = np.array(num_chars, np.int64)
        if not self.data.isascii():
            is_first = (np.frombuffer(self.data, np.uint8) & 0xC0) != 0x80  # of a character
            num_bytes = np.append(np.flatnonzero(is_first), len(self.data))[num_bytes]
        counts: list[int] = np.searchsorted(self.ends, num_bytes, side="right").tolist()
        return counts


class TextEncoder:
    """A model's tokenizer with a memory. Safe for several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        lengths = [len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size)]
        self._lengths = np.array(lengths, np.int64)
        self._longest = max(lengths)
        self._lock = threading.Lock()  # guards the memory
        self._texts: deque[EncodedText] = deque()  # the oldest first
        self._nothing = self._with_ends(b"", np.empty(0, np.int32))

    def encode(self, text: str) -> EncodedText:
        """The same tokens as the tokenizer's, in the time that the new part of the text takes."""
        data = without_surrogates(text).encode()
        if not isinstance(self._tokenizer, WorldTokenizer):
            return self._with_ends(data, np.array(self._tokenizer.encode(text), np.int32))
        known, num_common = self._most_alike(data)
        # The tokenizer goes from left to right and looks no further ahead than its longest token:
        # tokens that begin so far before the texts part are the same.
        num_known = known.num_tokens_in(num_common - self._longest)
        start = int(known.ends[num_known - 1]) if num_known else 0
        rest = np.array(self._tokenizer.encode_bytes(data[start:]), np.int32)
        encoded = self._with_ends(data, np.concatenate((known.tokens[:num_known], rest)))
        self._remember(encoded, known, num_common)
        return encoded

    def _with_ends(self, data: bytes, tokens: TokenArray) -> EncodedText:
        return EncodedText(data, tokens, self._lengths[tokens].cumsum())

    def _most_alike(self, data: bytes) -> tuple[EncodedText, int]:
        """The text that has the most bytes with `data` in common at the start, and how many."""
        best, num_common = self._nothing, 0
        with self._lock:
            texts = list(self._texts)
        for each in reversed(texts):
            if each.data[:num_common] == data[:num_common]:
                length = _num_common(each.data, data)
                if length > num_common:
                    best, num_common = each, length
        return best, num_common

    def _remember(self, encoded: EncodedText, known: EncodedText, num_common: int) -> None:
        """Keeps a text, instead of the one that it repeats as good as all of."""
        with self._lock:
            if known in self._texts and len(known.data) - num_common <= _MAX_LOST_BYTES:
                self._texts.remove(known)
            self._texts.append(encoded)
            while len(self._texts) > _MAX_TEXTS or self._num_bytes() > _MAX_BYTES:
                self._texts.popleft()

    def _num_bytes(self) -> int:
        return sum(text.num_bytes for text in self._texts)


def common_beginning(texts: Sequence[EncodedText]) -> TokenArray:
    """The tokens that all texts begin with, without any that is in what they have in common only
    because a blank ends it.
    """
    first, *others = texts
    num_bytes = min((_num_common(first.data, each.data) for each in others), default=0)
    num_bytes = len(first.data[:num_bytes].rstrip())
    num_tokens = first.num_tokens_in(num_bytes)
    for each in others:
        count = min(num_tokens, len(each.tokens))
        differs = first.tokens[:count] != each.tokens[:count]
        num_tokens = int(differs.argmax()) if differs.any() else count
    return first.tokens[:num_tokens]


def _num_common(one: bytes, other: bytes) -> int:
    """How many bytes two texts begin with alike."""
    length = min(len(one), len(other))
    differs = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length
