"""Token ids as the cache holds them, and digests of their prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

TokenArray: TypeAlias = npt.NDArray[np.int32]
TokenIds: TypeAlias = Sequence[int] | TokenArray

# An anchor stands for the first so many tokens, times a whole number, of a text. The index on disk
# is asked once for each anchor of a prompt, and a digest reads at most so many tokens more.
ANCHOR_TOKENS = 256

_DIGEST_BYTES = 16

# Token ids are not negative: what begins with negative ones is no beginning of any other text.
_SCOPE_BIT = np.int32(-(2**31))


def as_tokens(tokens: TokenIds) -> TokenArray:
    """`tokens` as a contiguous int32 array [T]: itself if it is one, else a copy.

    A caller that has many tokens should pass such an array: converting 100,000 takes milliseconds.
    Raises ValueError for what are no token ids.
    """
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise ValueError("tokens are a list of ids")
    # The ids are a key: one that changes its value on the way would find another text's state.
    same = array.astype(np.int32)
    if array.dtype != np.int32 and not np.array_equal(same, array):
        raise ValueError("a token id is an integer of 32 bits")
    return np.ascontiguousarray(array) if array.dtype == np.int32 else same


def in_scope(tokens: TokenArray, scope: str) -> TokenArray:
    """What stands for `tokens` among those of all scopes: texts of two never begin alike.

    The scope "" is the usual one, in which tokens stand for themselves.
    """
    if not scope:
        return tokens
    digest = blake2b(scope.encode(), digest_size=_DIGEST_BYTES).digest()
    mark: TokenArray = np.frombuffer(digest, "<i4").astype(np.int32) | _SCOPE_BIT
    return np.concatenate((mark, tokens))


class PrefixDigests:
    """Digests of the prefixes of one text, in any order; each reads less than an anchor's tokens.

    Every digest depends on the ids alone, and is the same on every machine.
    """

    def __init__(self, tokens: TokenArray) -> None:
        self._ids = tokens.astype("<i4", copy=False).data.cast("B")
        self._num_tokens = len(tokens)
        hasher = blake2b(digest_size=_DIGEST_BYTES)
        self._hashers = [hasher.copy()]
        for start in range(0, len(tokens) - ANCHOR_TOKENS + 1, ANCHOR_TOKENS):
            hasher.update(self._bytes(start, start + ANCHOR_TOKENS))
            self._hashers.append(hasher.copy())

    def anchor(self, index: int) -> bytes:
        """The digest of the first `index * ANCHOR_TOKENS` tokens."""
        return self._hashers[index].digest()

    def of(self, num_tokens: int) -> bytes:
        """The digest of the first `num_tokens` tokens."""
        if not 0 <= num_tokens <= self._num_tokens:
            raise ValueError(f"no {num_tokens} tokens in {self._num_tokens}")
        index = num_tokens // ANCHOR_TOKENS
        hasher = self._hashers[index].copy()
        hasher.update(self._bytes(index * ANCHOR_TOKENS, num_tokens))
        return hasher.digest()

    def anchor_of(self, num_tokens: int) -> bytes:
        """The last anchor in the first `num_tokens` tokens."""
        return self.anchor(num_tokens // ANCHOR_TOKENS)

    def _bytes(self, start: int, end: int) -> memoryview:
        return self._ids[4 * start : 4 * end]
