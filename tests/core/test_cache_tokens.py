"""Token ids as keys: what is refused, and digests of every prefix."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest

from rwkv_core.cache.tokens import ANCHOR_TOKENS, PrefixDigests, as_tokens


def test_an_array_of_ids_is_taken_as_it_is() -> None:
    tokens = np.array([3, 1, 2], np.int32)
    assert as_tokens(tokens) is tokens
    assert as_tokens(tokens[::2]).tolist() == [3, 2]


@pytest.mark.parametrize("tokens", [[5, 6], (5, 6), np.array([5, 6], np.int64), range(5, 7)])
def test_other_sequences_are_converted(tokens: list[int]) -> None:
    ids = as_tokens(tokens)
    assert ids.dtype == np.int32
    assert ids.tolist() == [5, 6]


def test_no_tokens() -> None:
    assert as_tokens([]).tolist() == []


@pytest.mark.parametrize("tokens", [[1 << 31], [1.5], np.array([1 << 32], np.int64), [[1], [2]]])
def test_what_would_change_its_value_is_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token"):
        as_tokens(tokens)


@pytest.mark.parametrize("length", [0, 1, ANCHOR_TOKENS - 1, ANCHOR_TOKENS, 3 * ANCHOR_TOKENS + 5])
def test_digests_of_all_prefixes(length: int) -> None:
    tokens = np.random.default_rng(length).integers(0, 65536, length).astype(np.int32)
    digests = PrefixDigests(tokens)
    for num_tokens in range(length + 1):
        expected = blake2b(tokens[:num_tokens].tobytes(), digest_size=16).digest()
        assert digests.of(num_tokens) == expected
        if num_tokens % ANCHOR_TOKENS == 0:
            assert digests.anchor(num_tokens // ANCHOR_TOKENS) == expected
            anchor = expected
        assert digests.anchor_of(num_tokens) == anchor
    with pytest.raises(ValueError, match="tokens"):
        digests.of(length + 1)
