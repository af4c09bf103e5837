"""The cache of a model's states: the longest prefix of both tiers, never another's, never over."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_core.cache import (
    DiskTier,
    Hit,
    MemoryTier,
    ModelKey,
    Numerics,
    Snapshot,
    SnapshotKind,
    StateCache,
)
from rwkv_core.cache.defaults import disk_budget, memory_budget
from rwkv_core.cache.prefix_tree import NODE_BYTES
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from tests.tools.native import require_kernels
from tests.tools.snapshots import KEY, equal, is_of, snapshot_of

TURN, CHECKPOINT = SnapshotKind.TURN, SnapshotKind.CHECKPOINT

# Room for so many snapshots of short texts.
FOR_ONE = snapshot_of([1]).nbytes + 2 * NODE_BYTES + 64
PLENTY = 1 << 30


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskTier]:
    with closing(DiskTier(tmp_path / "states", PLENTY)) as tier:
        yield tier


def put(cache: StateCache, tokens: Sequence[int], kind: SnapshotKind = TURN) -> None:
    cache.put(tokens, snapshot_of(tokens), kind)


def found(cache: StateCache, tokens: Sequence[int]) -> int:
    """How many tokens are found, with their own snapshot."""
    hit = cache.lookup(tokens)
    if hit is None:
        return 0
    assert is_of(hit.snapshot, tokens[: hit.num_tokens])
    return hit.num_tokens


def test_the_longest_prefix_in_memory() -> None:
    cache = StateCache(KEY, PLENTY)
    assert cache.lookup([1, 2]) is None
    snapshot = snapshot_of([1, 2])
    cache.put([1, 2], snapshot, TURN)
    assert cache.lookup([1, 2]) == Hit(2, snapshot)
    assert cache.lookup((1, 2, 3)) == Hit(2, snapshot)
    assert cache.lookup(np.array([1, 2, 3], np.int32)) == Hit(2, snapshot)
    assert cache.lookup([1]) is None
    assert cache.lookup([]) is None


def test_no_tokens_have_no_snapshot() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        StateCache(KEY, PLENTY).put([], snapshot_of([1]), TURN)


def test_scopes_do_not_see_each_other(disk: DiskTier) -> None:
    for cache in (StateCache(KEY, PLENTY), StateCache(KEY, PLENTY, disk)):
        snapshots = {scope: snapshot_of([9, len(scope)]) for scope in ("", "one", "other")}
        for scope, snapshot in snapshots.items():
            cache.put([1, 2], snapshot, TURN, scope)
            assert cache.lookup([1, 2, 3], scope) == Hit(2, snapshot)
        for scope, snapshot in snapshots.items():
            assert cache.lookup([1, 2], scope) == Hit(2, snapshot)
            assert cache.lookup([1], scope) is None
            assert cache.lookup([], scope) is None
        assert cache.lookup([1, 2], "third") is None
        with pytest.raises(ValueError, match="at least one token"):
            cache.put([], snapshot_of([1]), TURN, "one")
        statistics = cache.statistics()
        assert statistics.num_tokens_looked_up == 3 * (3 + 2 + 1) + 2
        assert statistics.num_tokens_reused == 3 * (2 + 2)
    assert disk.flush(30)
    later = StateCache(KEY, PLENTY, disk)
    assert later.lookup([1, 2], "third") is None
    for scope, snapshot in snapshots.items():
        hit = later.lookup([1, 2, 3], scope)
        assert hit is not None
        assert hit.num_tokens == 2
        assert equal(hit.snapshot, snapshot)
    assert later.statistics().num_disk_hits == 3


def test_the_longest_of_both_tiers(disk: DiskTier) -> None:
    earlier = StateCache(KEY, PLENTY, disk)
    put(earlier, [1, 2])
    put(earlier, [1, 2, 3, 4])
    assert disk.flush(30)
    cache = StateCache(KEY, PLENTY, disk)
    put(cache, [1, 2, 3], CHECKPOINT)
    assert found(cache, [1, 2, 3]) == 3
    assert found(cache, [1, 2, 3, 4, 5]) == 4
    assert found(cache, [1, 2, 9]) == 2
    statistics = cache.statistics()
    assert (statistics.num_memory_hits, statistics.num_disk_hits) == (1, 2)
    assert statistics.num_snapshots == 3  # what came from disk is now in memory
    assert found(cache, [1, 2, 3, 4, 5]) == 4
    assert cache.statistics().num_disk_hits == 2


@pytest.mark.parametrize("kind", SnapshotKind)
def test_all_but_checkpoints_are_written_at_once(disk: DiskTier, kind: SnapshotKind) -> None:
    put(StateCache(KEY, PLENTY, disk), [1, 2], kind)
    assert disk.flush(30)
    assert found(StateCache(KEY, PLENTY, disk), [1, 2]) == (0 if kind is CHECKPOINT else 2)


def test_a_checkpoint_is_written_when_it_leaves_the_memory(disk: DiskTier) -> None:
    cache = StateCache(KEY, 3 * FOR_ONE, disk)
    for end in range(1, 10):
        put(cache, [5] * end, CHECKPOINT)
    assert disk.flush(30)
    assert cache.statistics().num_evicted >= 6
    assert [found(cache, [5] * end) for end in range(1, 10)] == [*range(1, 10)]


def test_a_state_that_does_not_fit_into_memory_goes_to_disk(disk: DiskTier) -> None:
    cache = StateCache(KEY, 1, disk)
    put(cache, [1], CHECKPOINT)
    put(cache, [1, 2])
    assert disk.flush(30)
    assert disk.statistics().num_written == 2
    assert found(cache, [1, 2, 3]) == 2
    assert cache.statistics().num_bytes == 0
    assert disk.flush(30)
    assert disk.statistics().num_written == 2  # what came from there is not written again


def test_another_model_finds_nothing(disk: DiskTier) -> None:
    put(StateCache(KEY, PLENTY, disk), [1, 2])
    assert disk.flush(30)
    for key in (ModelKey("c" * 64, KEY.numerics), ModelKey(KEY.model, "c" * 64)):
        assert StateCache(key, PLENTY, disk).lookup([1, 2]) is None


def test_what_another_model_pushes_out_is_written_as_its_own(disk: DiskTier) -> None:
    memory = MemoryTier(2 * FOR_ONE)
    other_key = ModelKey("c" * 64, KEY.numerics)
    mine, other = StateCache(KEY, memory, disk), StateCache(other_key, memory, disk)
    put(mine, [1, 2], CHECKPOINT)
    for text in ([1, 2], [3], [4]):
        put(other, text, CHECKPOINT)
    assert mine.statistics().num_snapshots == 0
    assert (mine.statistics().num_evicted, other.statistics().num_evicted) == (1, 1)
    assert disk.flush(30)
    assert found(mine, [1, 2, 3]) == 2
    assert mine.lookup([3]) is None
    other.drop_memory()
    assert memory.num_bytes == mine.statistics().num_bytes > 0


def test_statistics() -> None:
    cache = StateCache(KEY, 2 * FOR_ONE)
    put(cache, [1, 2])
    put(cache, [3])
    put(cache, [4])
    assert found(cache, [3, 1, 1]) == 1
    assert found(cache, [1, 2]) == 0
    statistics = cache.statistics()
    assert statistics.num_lookups == 2
    assert statistics.num_memory_hits == 1
    assert statistics.num_tokens_looked_up == 5
    assert statistics.num_tokens_reused == 1
    assert statistics.num_evicted == 1
    assert statistics.num_snapshots == 2
    assert 0 < statistics.num_bytes <= statistics.budget == 2 * FOR_ONE


@pytest.mark.parametrize(("num_chats", "has_disk"), [(1000, False), (100, True)])
def test_many_chats_come_and_go(disk: DiskTier, num_chats: int, has_disk: bool) -> None:
    cache = StateCache(KEY, 10 * FOR_ONE, disk if has_disk else None)
    rng = np.random.default_rng(0)
    some = snapshot_of([1])
    mine = [7, 7]
    put(cache, mine)
    for chat in range(num_chats):
        cache.put(rng.integers(0, 300, 60).tolist(), Snapshot.of(some.state, some.logits), TURN)
        if chat % 5 == 0:
            mine = [*mine, 7]
            put(cache, mine)
        assert cache.statistics().num_bytes <= 10 * FOR_ONE
        assert found(cache, mine) == len(mine)
    assert found(cache, mine[:-1]) == len(mine) - 1


# A chat is a path of turns; an edit goes back some turns and takes another way.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["look up", "put", "put", "restart"]),
        st.lists(st.integers(0, 2), min_size=1, max_size=7),
        st.sampled_from(SnapshotKind),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=25)
@given(STEPS, st.integers(0, 6))
def test_against_a_model_that_forgets_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, list[int], SnapshotKind]],
    room: int,
) -> None:
    everything: set[tuple[int, ...]] = set()
    durable: set[tuple[int, ...]] = set()
    with closing(DiskTier(tmp_path_factory.mktemp("states"), PLENTY)) as disk:
        cache = StateCache(KEY, room * FOR_ONE, disk)
        for action, tokens, kind in steps:
            if action == "put":
                put(cache, tokens, kind)
                everything.add(tuple(tokens))
                if kind is not CHECKPOINT:
                    durable.add(tuple(tokens))
            elif action == "restart":
                assert disk.flush(30)
                cache = StateCache(KEY, room * FOR_ONE, disk)
            assert disk.flush(30)
            num_tokens = found(cache, tokens)
            prefixes = {tuple(tokens[:end]) for end in range(1, len(tokens) + 1)}
            assert num_tokens >= max(map(len, prefixes & durable), default=0)
            assert num_tokens in {0, *map(len, prefixes & everything)}
            assert cache.statistics().num_bytes <= room * FOR_ONE


def test_threads(disk: DiskTier) -> None:
    cache = StateCache(KEY, 8 * FOR_ONE, disk)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(60):
                tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 9))]
                if rng.random() < 0.5:
                    put(cache, tokens, rng.choice([*SnapshotKind]))
                else:
                    found(cache, tokens)
                assert cache.statistics().num_bytes <= 8 * FOR_ONE
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert disk.flush(30)


# With a model


@pytest.fixture(scope="module")
def model() -> Model:
    require_kernels()
    return load_model(EMBEDDED, kernels=True)


def test_numerics_of_the_kernels(model: Model) -> None:
    numerics = Numerics.of(model.executor)
    assert numerics.executor == "kernels"
    assert numerics.instruction_set == require_kernels().isa()
    assert numerics.version == require_kernels().SOURCE_HASH


def test_cold_warm_forked_and_restarted_are_equal_to_the_bit(model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    text = rng.integers(0, model.config.vocab_size, 600).tolist()
    fork = [*text[:400], *rng.integers(0, model.config.vocab_size, 50).tolist()]
    key = ModelKey.of("sha256:0", model.tokenizer, None, Numerics.of(model.executor))

    def run(cache: StateCache, tokens: list[int]) -> tuple[int, torch.Tensor]:
        """Tokens reused, and the logits of the last token."""
        hit = cache.lookup(tokens)
        reused = hit.num_tokens if hit else 0
        state = hit.snapshot.state.clone() if hit else model.new_state()
        if hit and reused == len(tokens):
            return reused, hit.snapshot.logits
        for start in range(reused, len(tokens), 100):
            logits = model.advance(tokens[start : start + 100], state)
            end = min(start + 100, len(tokens))
            kind = CHECKPOINT if end < len(tokens) else SnapshotKind.PROMPT_END
            cache.put(tokens[:end], Snapshot.of(state, logits), kind)
        return reused, logits

    cold = model.forward(text)[0]
    cold_fork = model.forward(fork)[0]
    with closing(DiskTier(tmp_path, PLENTY)) as disk:
        cache = StateCache(key, PLENTY, disk)
        for tokens, logits, expected in [
            (text, cold, 0),
            (text, cold, 600),
            (fork, cold_fork, 400),
            (text, cold, 600),
        ]:
            reused, ours = run(cache, tokens)
            assert reused == expected
            assert torch.equal(ours, logits)
    with closing(DiskTier(tmp_path, PLENTY)) as disk:
        cache = StateCache(key, PLENTY, disk)
        for tokens, logits in [(text, cold), (fork, cold_fork)]:
            reused, ours = run(cache, tokens)
            assert reused == len(tokens)
            assert torch.equal(ours, logits)
        longer = [*text, 5, 6]
        reused, ours = run(cache, longer)
        assert reused == 600
        assert torch.equal(ours, model.forward(longer)[0])


# Defaults


def test_the_memory_budget_is_a_tenth_of_what_is_free() -> None:
    assert memory_budget(0) == 64 << 20
    assert memory_budget(5 << 30) == (5 << 30) // 10
    assert memory_budget(1 << 40) == 2 << 30
    assert 64 << 20 <= memory_budget() <= 2 << 30


def test_the_memory_budget_where_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_core.cache.defaults.available_bytes", lambda: None)
    assert memory_budget() == 64 << 20


def test_the_disk_budget_counts_what_is_free_and_what_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    empty = disk_budget(folder)
    assert 0 < empty <= 20 << 30
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(bytes(1000))
    assert 0 < disk_budget(folder) <= 20 << 30
