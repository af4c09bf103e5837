"""What begins with given tokens can be deleted, in memory and on disk, and nothing else goes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_core.cache import (
    DiskTier,
    MemoryTier,
    ModelKey,
    SnapshotKind,
    StateCache,
    as_tokens,
)
from rwkv_core.cache.disk_folder import FILES_NAME
from rwkv_core.cache.memory_tier import FORGETTING_S
from rwkv_core.cache.prefix_tree import PrefixTree
from rwkv_core.cache.tokens import in_scope
from tests.tools.snapshots import KEY, is_of, snapshot_of

TURN = SnapshotKind.TURN
PLENTY = 1 << 30
PATIENCE_S = 60.0
OTHER = replace(KEY, model="c" * 64)

TEXTS = st.lists(st.integers(0, 1), max_size=6).map(tuple)
# Two chats that begin alike, and one that does not; the second one goes on from [1, 2, 3].
CHATS = ([1], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 4], [2, 1, 2, 3])
LEFT = ([1], [1, 2, 4], [2, 1, 2, 3])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskTier]:
    with closing(DiskTier(tmp_path, PLENTY)) as tier:
        yield tier


def put(disk: DiskTier, tokens: Sequence[int], key: ModelKey = KEY) -> None:
    disk.put(key, as_tokens(tokens), snapshot_of(tokens), TURN)


def found(disk: DiskTier, tokens: Sequence[int], key: ModelKey = KEY) -> bool:
    """Whether exactly these tokens are there."""
    hit = disk.lookup(key, as_tokens(tokens))
    if hit is None or hit.num_tokens < len(tokens):
        return False
    assert is_of(hit.snapshot, tokens)
    return True


def num_files(folder: Path) -> int:
    return len([*(folder / FILES_NAME).iterdir()])


@settings(deadline=None)
@given(st.dictionaries(TEXTS, st.integers(), max_size=20), TEXTS)
def test_a_tree_knows_what_begins_so(
    texts: dict[tuple[int, ...], int], beginning: tuple[int, ...]
) -> None:
    tree: PrefixTree[int] = PrefixTree()
    for text, number in texts.items():
        tree.insert(as_tokens(text), number)
    nodes = tree.beginning_with(as_tokens(beginning))
    assert {tuple(node.tokens.tolist()): node.entry for node in nodes} == {
        text: number for text, number in texts.items() if text[: len(beginning)] == beginning
    }
    for node in nodes:
        tree.remove(node)
    assert not tree.beginning_with(as_tokens(beginning))
    assert len(tree) == len(texts) - len(nodes)


def test_memory_forgets_and_has_room_again() -> None:
    memory = MemoryTier(PLENTY)
    for key in (KEY, OTHER):
        for tokens in CHATS:
            memory.put(key, as_tokens(tokens), snapshot_of(tokens), TURN)
    before = memory.num_bytes
    memory.forget(as_tokens([9]))
    assert memory.num_bytes == before
    memory.forget(as_tokens([1, 2, 3]))
    for key in (KEY, OTHER):
        for tokens in CHATS:
            hit = memory.find(key, as_tokens(tokens))
            assert (hit is not None and hit.num_tokens == len(tokens)) == (tokens in LEFT)
        usage = memory.usage(key)
        assert usage.num_snapshots == len(LEFT)
        assert usage.num_bytes >= len(LEFT) * snapshot_of([1]).nbytes
    assert sum(memory.usage(key).num_bytes for key in (KEY, OTHER)) == memory.num_bytes
    memory.forget(as_tokens([]))
    assert memory.num_bytes == 0
    # What is left is in order: it can be filled and emptied again.
    for tokens in CHATS:
        memory.put(KEY, as_tokens(tokens), snapshot_of(tokens), TURN)
    assert len(memory.resize(0)) == len(CHATS)


def test_what_comes_a_moment_later_is_not_kept(
    disk: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a reply that was being written, or the next prompt, which was being read ahead."""
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    memory = MemoryTier(PLENTY)
    cache = StateCache(KEY, memory, disk)
    memory.forget(as_tokens([1, 2, 3]))

    def kept(tokens: Sequence[int]) -> bool:
        cache.put(tokens, snapshot_of(tokens), TURN)
        assert disk.flush(PATIENCE_S)
        cache.drop_memory()
        hit = cache.lookup(tokens)
        return hit is not None and hit.num_tokens == len(tokens)

    assert [kept(tokens) for tokens in CHATS] == [tokens in LEFT for tokens in CHATS]
    disk.put(KEY, as_tokens([1, 2, 3, 9]), snapshot_of([1, 2, 3, 9]), TURN)
    assert cache.lookup([1, 2, 3, 9]) is not None  # read while it was being deleted
    assert disk.forget(as_tokens([1, 2, 3]), PATIENCE_S)
    hit = cache.lookup([1, 2, 3, 9])
    assert hit is None or hit.num_tokens == 1
    now_s += FORGETTING_S - 1
    assert not kept([1, 2, 3])
    now_s += 1
    assert kept([1, 2, 3])


def test_files_go_and_stay_gone(tmp_path: Path) -> None:
    with closing(DiskTier(tmp_path, PLENTY)) as disk:
        for key in (KEY, OTHER):
            for tokens in CHATS:
                put(disk, tokens, key)
        assert disk.flush(PATIENCE_S)
        assert disk.forget(as_tokens([1, 2, 3]), PATIENCE_S)
        assert num_files(tmp_path) == 2 * len(LEFT)
        assert disk.statistics().num_snapshots == 2 * len(LEFT)
    with closing(DiskTier(tmp_path, PLENTY)) as disk:
        for key in (KEY, OTHER):
            assert [found(disk, tokens, key) for tokens in CHATS] == [
                tokens in LEFT for tokens in CHATS
            ]
        put(disk, [1, 2, 3])
        assert disk.flush(PATIENCE_S)
        assert found(disk, [1, 2, 3])


def test_a_scope_goes_as_a_whole(disk: DiskTier, tmp_path: Path) -> None:
    for scope in ("", "one", "other"):
        for tokens in CHATS:
            put(disk, in_scope(as_tokens(tokens), scope).tolist())
    assert disk.flush(PATIENCE_S)
    assert disk.forget(in_scope(as_tokens([]), "one"), PATIENCE_S)
    assert num_files(tmp_path) == 2 * len(CHATS)
    assert not any(found(disk, in_scope(as_tokens(each), "one").tolist()) for each in CHATS)
    for scope in ("", "other"):
        assert all(found(disk, in_scope(as_tokens(each), scope).tolist()) for each in CHATS)


def test_what_waits_or_is_being_written_goes_too(
    disk: DiskTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_writing, may_write = threading.Event(), threading.Event()

    def fsync(_: int) -> None:
        is_writing.set()
        assert may_write.wait(PATIENCE_S)

    monkeypatch.setattr(os, "fsync", fsync)
    for tokens in ([1, 2, 3], *CHATS):
        put(disk, tokens)
    assert is_writing.wait(PATIENCE_S)
    assert not disk.forget(as_tokens([1, 2, 3]), 0)  # not yet
    put(disk, [1, 2, 3, 9])  # what is put later is new
    may_write.set()
    assert disk.flush(PATIENCE_S)
    assert [found(disk, tokens) for tokens in CHATS] == [tokens in LEFT for tokens in CHATS]
    assert found(disk, [1, 2, 3, 9])
    assert num_files(tmp_path) == len(LEFT) + 1


def test_damaged_files_are_left_to_who_reads_them(disk: DiskTier, tmp_path: Path) -> None:
    put(disk, [1, 2])
    put(disk, [1, 2, 3])
    assert disk.flush(PATIENCE_S)
    for path in (tmp_path / FILES_NAME).iterdir():
        os.truncate(path, 100)
        break
    assert disk.forget(as_tokens([1]), PATIENCE_S)
    assert num_files(tmp_path) == 1


def test_a_tier_that_writes_nothing_forgets_nothing(tmp_path: Path) -> None:
    with closing(DiskTier(tmp_path, PLENTY)) as disk:
        put(disk, [1])
    assert not disk.forget(as_tokens([1]), PATIENCE_S)
