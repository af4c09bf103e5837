"""Drafts: what is found in a text, against a search through all of it, and when it is worth it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_core.cache import TokenArray
from rwkv_core.drafts import Drafter, Match, NgramIndex, default_max_tokens
from rwkv_core.kernel_executor import KernelExecutor
from rwkv_core.torch_executor import TorchExecutor

SIZES = (5, 2)


def array(tokens: Sequence[int]) -> TokenArray:
    return np.array(tokens, np.int32)


def searched(tokens: Sequence[int]) -> Match | None:
    """The longest n-gram at the end that was there before, where it was last."""
    for size in SIZES:
        for position in range(len(tokens) - 1, size - 1, -1):
            if tokens[position - size : position] == tokens[-size:]:
                return Match(size, position)
    return None


@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.lists(st.integers(0, 3), max_size=60),
    st.sampled_from([1, 7919, 65535 // 3]),
)
def test_the_index_finds_what_a_search_finds(
    prompt: list[int], reply: list[int], factor: int
) -> None:
    """Wherever the prompt ends and the reply begins. So few n-grams have slots of their own."""
    tokens = [token * factor for token in prompt]
    index = NgramIndex(array(tokens))
    for token in reply:
        assert index.find() == searched(tokens)
        tokens.append(token * factor)
        index.append(tokens[-1])
    assert index.find() == searched(tokens)
    assert [index[position] for position in range(len(index))] == tokens


def test_what_is_found_in_a_text_larger_than_the_tables_is_the_latest() -> None:
    """Some n-grams are forgotten, none is mistaken for another."""
    choices = np.random.default_rng(1)
    known = choices.integers(0, 200, 300_000).astype(np.int32)
    index = NgramIndex(known)
    tokens: list[int] = known.tolist()
    num_found = 0
    for _ in range(40):
        tokens.append(int(choices.integers(0, 200)))
        index.append(tokens[-1])
        match = index.find()
        if match is not None:
            num_found += 1
            assert match == searched(tokens)
    assert num_found > 20


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1, 2, 3, 4]),
        ([9, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2, 1]),  # longer than what there is
        ([7, 7, 7], [7, 7, 7, 7, 7, 7, 7]),
    ],
)
def test_a_continuation_repeats_itself_where_the_text_ends(
    tokens: list[int], wanted: list[int]
) -> None:
    index = NgramIndex(array(tokens))
    match = index.find()
    assert match is not None
    assert index.continuation(match, 7) == wanted


def drafted(drafter: Drafter, tokens: Sequence[int], row_cost: float) -> list[int]:
    """The lengths of drafts made before each token."""
    lengths = []
    for token in tokens:
        lengths.append(len(drafter.draft(1, row_cost, None)))
        drafter.push(token)
    return lengths


def test_drafts_grow_with_success_and_cease_without() -> None:
    song = random.Random(1).sample(range(5000), 40)
    drafter = Drafter(array(song), 8)
    lengths = drafted(drafter, song * 2, row_cost=0.06)
    assert lengths[:3] == [0, 0, 0]  # nothing has been right yet
    assert lengths[-1] == max(lengths) == 8
    assert lengths == sorted(lengths)
    assert drafter.draft(1, 0.06, 3) == song[:3]
    noise = [token + 5000 for token in song]
    assert set(drafted(drafter, noise, row_cost=0.06)[2:]) == {0}  # no match at all
    # A text that begins alike again and again, and then is different: not worth a row.
    false_start = [each for number in range(60) for each in (*song[:2], 6000 + number)]
    assert max(drafted(drafter, false_start, row_cost=0.06)[-20:]) == 0


def test_dear_rows_are_not_spent() -> None:
    song = list(range(100, 130))
    lengths = {}
    for row_cost in (0.0, 0.06, 0.3, 0.5, 1.0, 8.0):
        drafter = Drafter(array(song), 1000)
        lengths[row_cost] = max(drafted(drafter, song * 4, row_cost))
    assert list(lengths.values()) == sorted(lengths.values(), reverse=True)
    assert lengths[0.0] == 32  # the most there are, whatever is asked for
    assert lengths[0.06] >= lengths[0.3] > 0
    assert lengths[0.5] == lengths[1.0] == lengths[8.0] == 0


def test_a_limit_is_kept() -> None:
    drafter = Drafter(array([1, 2] * 50), 4)
    drafted(drafter, [1, 2] * 20, 0.0)
    assert drafter.draft(1, 0.0, None) == [1, 2, 1, 2]
    assert drafter.draft(1, 0.0, 1) == [1]
    assert drafter.draft(1, 0.0, 0) == drafter.draft(1, 0.0, -1) == []


def test_a_token_costs_microseconds_after_a_long_text_too() -> None:
    tokens = np.random.default_rng(1).integers(0, 60000, 100_000).astype(np.int32)
    drafter = Drafter(tokens, 8)
    times = []
    for token in tokens[:2000].tolist():
        start = time.thread_time_ns()
        drafter.push(token)
        drafter.draft(1, 0.06, None)
        times.append(time.thread_time_ns() - start)
    assert sorted(times)[1000] < 50_000  # 5,000 on the machine it was written on


def test_the_default_is_on_where_it_pays() -> None:
    def default(kind: type, num_bytes: int) -> int:
        return default_max_tokens(Mock(kind, num_weight_bytes=num_bytes))

    assert default(KernelExecutor, 100 << 20) == 8
    assert default(KernelExecutor, 5 << 20) == 0  # the demo model
    assert default(TorchExecutor, 100 << 20) == 0
