"""Snapshots in memory: the budget always, and what goes first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_core.cache import ModelKey, Snapshot, SnapshotKind, as_tokens
from rwkv_core.cache.memory_tier import Evicted, MemoryTier
from rwkv_core.cache.prefix_tree import NODE_BYTES
from tests.tools.snapshots import KEY, is_of, snapshot_of

SIZE = snapshot_of([1]).nbytes
# Room for so many snapshots of short texts.
FOR_ONE = SIZE + 2 * NODE_BYTES + 64

SYSTEM_PROMPT, TURN, CHECKPOINT = (
    SnapshotKind.SYSTEM_PROMPT,
    SnapshotKind.TURN,
    SnapshotKind.CHECKPOINT,
)


def put(tier: MemoryTier, tokens: Sequence[int], kind: SnapshotKind = TURN) -> list[Evicted]:
    return tier.put(KEY, as_tokens(tokens), snapshot_of(tokens), kind)


def has(tier: MemoryTier, tokens: Sequence[int]) -> bool:
    """Whether exactly these tokens are there; counts as a use."""
    found = tier.find(KEY, as_tokens(tokens))
    return found is not None and found.num_tokens == len(tokens)


def evicted_tokens(evicted: list[Evicted]) -> list[list[int]]:
    return [each.tokens.tolist() for each in evicted]


def test_finds_the_longest_prefix() -> None:
    tier = MemoryTier(10 * FOR_ONE)
    put(tier, [1, 2])
    put(tier, [1, 2, 3, 4])
    found = tier.find(KEY, as_tokens([1, 2, 3, 4, 5]))
    assert found is not None
    assert found.num_tokens == 4
    assert is_of(found.snapshot, [1, 2, 3, 4])
    found = tier.find(KEY, as_tokens([1, 2, 3]))
    assert found is not None
    assert found.num_tokens == 2
    assert tier.find(KEY, as_tokens([1])) is None
    assert tier.find(KEY, as_tokens([2, 1])) is None


def test_superseded_ones_have_a_limit_of_their_own() -> None:
    tier = MemoryTier(100 * FOR_ONE, superseded_limit=2 * SIZE)
    evicted = [evicted_tokens(put(tier, [1] * length)) for length in range(1, 7)]
    assert evicted == [[], [], [], [[1]], [[1, 1]], [[1, 1, 1]]]
    assert [has(tier, [1] * length) for length in range(1, 7)] == [False] * 3 + [True] * 3
    assert put(tier, [2]) == []  # the newest of a chat is not among them


def test_what_nobody_takes_stays_and_goes_step_by_step_later() -> None:
    is_taken = False
    tier = MemoryTier(100 * FOR_ONE, superseded_limit=2 * SIZE, is_taken=lambda: is_taken)
    for length in range(1, 10):
        assert put(tier, [1] * length) == []
    is_taken = True
    assert evicted_tokens(put(tier, [2])) == [[1], [1] * 2]
    assert evicted_tokens(put(tier, [3])) == [[1] * 3, [1] * 4]
    assert len(tier.resize(FOR_ONE)) == len(range(5, 10)) + 1  # the budget knows no steps


def test_the_least_recently_used_chat_goes_first() -> None:
    tier = MemoryTier(3 * FOR_ONE)
    for chat in (1, 2, 3):
        put(tier, [chat, chat])
    assert has(tier, [1, 1])
    (evicted,) = put(tier, [4, 4])
    assert evicted.tokens.tolist() == [2, 2]
    assert is_of(evicted.snapshot, [2, 2])
    assert evicted.kind is TURN
    assert has(tier, [1, 1])
    assert has(tier, [3, 3])
    assert not has(tier, [2, 2])


def test_superseded_snapshots_go_before_newest_ones() -> None:
    tier = MemoryTier(4 * FOR_ONE)
    put(tier, [9, 9])
    put(tier, [1])
    put(tier, [1, 1])
    put(tier, [1, 1, 1])
    assert evicted_tokens(put(tier, [1, 1, 1, 1])) == [[1]]
    assert evicted_tokens(put(tier, [1, 1, 1, 1, 1])) == [[1, 1]]
    assert has(tier, [9, 9])


def test_checkpoints_go_before_ends_of_turns() -> None:
    tier = MemoryTier(4 * FOR_ONE)
    put(tier, [1])
    put(tier, [1, 2], CHECKPOINT)
    put(tier, [1, 2, 3], CHECKPOINT)
    put(tier, [1, 2, 3, 4])
    assert evicted_tokens(put(tier, [1, 2, 3, 4, 5])) == [[1, 2]]
    assert evicted_tokens(put(tier, [1, 2, 3, 4, 5, 6])) == [[1, 2, 3]]
    assert evicted_tokens(put(tier, [1, 2, 3, 4, 5, 6, 7])) == [[1]]


def test_superseded_snapshots_keep_a_quarter_against_chats_that_never_come_back() -> None:
    tier = MemoryTier(8 * FOR_ONE)
    put(tier, [1])
    put(tier, [1, 1])
    put(tier, [1, 1, 1])
    for chat in range(2, 100):
        put(tier, [chat])
        assert has(tier, [1, 1, 1])
    assert has(tier, [1, 1])
    assert has(tier, [1])


def test_a_system_prompt_counts_as_newest() -> None:
    tier = MemoryTier(3 * FOR_ONE)
    put(tier, [7], SYSTEM_PROMPT)
    for end in range(2, 20):
        put(tier, [7] * end)
    assert has(tier, [7])
    for chat in range(100, 120):  # and it is used by every chat that begins with it
        found = tier.find(KEY, as_tokens([7, chat]))
        assert found is not None
        assert found.num_tokens == 1
        put(tier, [7, chat])


def test_a_kind_can_rise_but_not_fall() -> None:
    tier = MemoryTier(2 * FOR_ONE)
    put(tier, [1], CHECKPOINT)
    put(tier, [1], SYSTEM_PROMPT)
    put(tier, [1], CHECKPOINT)
    put(tier, [1, 2])
    assert evicted_tokens(put(tier, [1, 2, 3])) == [[1, 2]]
    assert len(tier) == 2


def test_a_title_request_costs_a_chat_no_more_than_its_turn_in_the_order() -> None:
    tier = MemoryTier(6 * FOR_ONE)
    chat = [5]
    for turn in range(30):
        put(tier, chat, SnapshotKind.PROMPT_END)
        chat = [*chat, turn]
        put(tier, chat, SnapshotKind.REPLY_END)
        for task in (90, 91):  # title and tags, each a text of its own
            put(tier, [task, turn], SnapshotKind.PROMPT_END)
            put(tier, [task, turn, 1], SnapshotKind.REPLY_END)
        assert has(tier, chat)


def test_a_thousand_chats_come_and_go_within_the_budget() -> None:
    tier = MemoryTier(20 * FOR_ONE)
    rng = np.random.default_rng(0)
    snapshot = snapshot_of([0])
    tier.put(KEY, as_tokens([1, 2, 3]), snapshot, SYSTEM_PROMPT)
    for _ in range(1000):
        tokens = [1, 2, 3]
        for turn in range(3):
            tokens += rng.integers(0, 65536, 50).tolist()
            tier.put(KEY, as_tokens(tokens), snapshot, TURN if turn % 2 else CHECKPOINT)
            assert tier.num_bytes <= tier.budget
    assert has(tier, [1, 2, 3]) or len(tier) > 10


def test_a_snapshot_larger_than_the_budget_comes_back_at_once() -> None:
    tier = MemoryTier(FOR_ONE)
    put(tier, [1])
    small = MemoryTier(SIZE)
    assert evicted_tokens(put(small, [1])) == [[1]]
    assert len(small) == small.num_bytes == 0
    assert evicted_tokens(tier.put(KEY, np.ones(10_000, np.int32), snapshot_of([2]), TURN)) == [
        [1] * 10_000
    ]
    assert has(tier, [1])


def test_an_equal_snapshot_changes_nothing() -> None:
    tier = MemoryTier(4 * FOR_ONE)
    put(tier, [1])
    before = tier.num_bytes
    assert put(tier, [1]) == []
    assert tier.num_bytes == before
    assert len(tier) == 1


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 8),
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.integers(0, 2), min_size=1, max_size=6),
            st.sampled_from(SnapshotKind),
        ),
        max_size=60,
    ),
)
def test_never_over_budget_never_another_texts_and_nothing_lost_unseen(
    room: int, steps: list[tuple[bool, list[int], SnapshotKind]]
) -> None:
    tier = MemoryTier(room * FOR_ONE)
    kept: dict[tuple[int, ...], Snapshot] = {}
    for is_put, tokens, kind in steps:
        if is_put:
            snapshot = snapshot_of(tokens)
            kept.setdefault(tuple(tokens), snapshot)
            for each in tier.put(KEY, as_tokens(tokens), snapshot, kind):
                assert kept.pop(tuple(each.tokens.tolist())) is each.snapshot
        else:
            found = tier.find(KEY, as_tokens(tokens))
            ends = [end for end in range(len(tokens) + 1) if tuple(tokens[:end]) in kept]
            assert (found.num_tokens if found else 0) == max(ends, default=0)
            if found:
                assert found.snapshot is kept[tuple(tokens[: found.num_tokens])]
        assert tier.num_bytes <= tier.budget
        assert len(tier) == len(kept)


@pytest.mark.parametrize("kind", SnapshotKind)
def test_a_lonely_snapshot_stays_whatever_it_is(kind: SnapshotKind) -> None:
    tier = MemoryTier(2 * FOR_ONE)
    for end in range(1, 10):
        put(tier, [1] * end, kind)
        assert has(tier, [1] * end)


OTHER = ModelKey("c" * 64, "d" * 64)


def test_models_share_one_budget_but_no_snapshot() -> None:
    tier = MemoryTier(3 * FOR_ONE)
    put(tier, [1, 1])
    tier.put(OTHER, as_tokens([1, 1]), snapshot_of([2]), TURN)
    found = tier.find(OTHER, as_tokens([1, 1, 5]))
    assert found is not None
    assert is_of(found.snapshot, [2])
    assert tier.find(OTHER, as_tokens([3, 3])) is None
    put(tier, [3, 3])
    assert has(tier, [1, 1])
    # The least recently used is the other model's.
    (evicted,) = put(tier, [4, 4])
    assert (evicted.key, evicted.tokens.tolist()) == (OTHER, [1, 1])
    assert is_of(evicted.snapshot, [2])
    assert tier.find(OTHER, as_tokens([1, 1])) is None
    assert (tier.usage(OTHER).num_snapshots, tier.usage(OTHER).num_evicted) == (0, 1)
    assert tier.usage(KEY).num_bytes == tier.num_bytes <= tier.budget


def test_what_a_model_had_can_be_dropped() -> None:
    tier = MemoryTier(4 * FOR_ONE)
    put(tier, [1, 1])
    put(tier, [1, 1, 1], CHECKPOINT)
    tier.put(OTHER, as_tokens([1, 1]), snapshot_of([2]), SYSTEM_PROMPT)
    of_other = tier.usage(OTHER)
    tier.drop(KEY)
    assert tier.find(KEY, as_tokens([1, 1, 1])) is None
    assert tier.usage(OTHER) == of_other
    assert tier.num_bytes == of_other.num_bytes
    tier.drop(OTHER)
    tier.drop(OTHER)
    assert len(tier) == tier.num_bytes == 0
    for chat in range(6):
        put(tier, [chat, chat])
    assert len(tier) == 4


def test_a_smaller_budget_lets_the_least_recently_used_go() -> None:
    tier = MemoryTier(4 * FOR_ONE)
    for chat in (1, 2, 3):
        put(tier, [chat, chat])
    tier.put(OTHER, as_tokens([4, 4]), snapshot_of([4]), TURN)
    assert has(tier, [1, 1])
    assert evicted_tokens(tier.resize(2 * FOR_ONE)) == [[2, 2], [3, 3]]
    assert tier.num_bytes <= tier.budget == 2 * FOR_ONE
    assert tier.resize(9 * FOR_ONE) == []
    assert has(tier, [1, 1])
