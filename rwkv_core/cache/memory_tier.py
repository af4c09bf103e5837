"""Snapshots in memory: of all models, within one budget in bytes.

What goes when the budget is full: a snapshot behind which the cache has seen the same chat go on is
superseded; only an edit, a retry or a branch needs it again. Superseded ones may keep a quarter of
the budget, so that one long chat cannot push out the newest snapshots of the others, nor a thousand
chats that never come back the turns of the one in use. They keep more where there is room, but with
a limit of their own never more than that: where a disk has them too, a chat's memory stays that of
its last turns, however long it gets. On either side
the least recently used goes first, superseded checkpoints of long texts before ends of turns.
System prompts count as newest whatever follows them. Using a snapshot uses those before it. Whose
model a snapshot is makes no difference to its turn, but none is found under another model's key.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from rwkv_core.cache.key import ModelKey
from rwkv_core.cache.prefix_tree import NODE_BYTES, Node, PrefixTree
from rwkv_core.cache.snapshot import Snapshot, SnapshotKind
from rwkv_core.cache.tokens import TokenArray

# Of the budget, what superseded snapshots may keep when the newest ones need room: one part in so
# many. The tier on disk divides its budget in the same way.
SUPERSEDED_PARTS = 4


# How many go at a time because of the limit of superseded ones: who takes them must keep up.
_AT_ONCE = 2

# For so long nothing is kept of what was forgotten, and of the last so many.
FORGETTING_S = 10.0
_MAX_FORGOTTEN = 64


class _Standing(Enum):
    CHECKPOINT = "superseded checkpoint"
    SUPERSEDED = "superseded"
    NEWEST = "newest"


@dataclass
class _Kept:
    key: ModelKey
    snapshot: Snapshot
    kind: SnapshotKind
    standing: _Standing


@dataclass
class _Share:
    """What one model has in the tier."""

    tree: PrefixTree[_Kept] = field(default_factory=PrefixTree)
    snapshot_bytes: int = 0
    num_evicted: int = 0


@dataclass(frozen=True)
class Usage:
    """What one model has in the tier, and how much of it had to go since it came."""

    num_snapshots: int
    num_bytes: int
    num_evicted: int


@dataclass(frozen=True)
class Found:
    """A snapshot for the first `num_tokens` tokens that were looked up."""

    num_tokens: int
    snapshot: Snapshot


@dataclass(frozen=True)
class Evicted:
    """A snapshot that the tier no longer holds."""

    key: ModelKey
    tokens: TokenArray
    snapshot: Snapshot
    kind: SnapshotKind


class MemoryTier:
    """Snapshots by their model and the tokens before them. Safe for several threads."""

    def __init__(
        self,
        budget: int,
        *,
        superseded_limit: int | None = None,
        is_taken: Callable[[], bool] = lambda: True,
    ) -> None:
        """`budget` in bytes: of states and logits, and of tokens and nodes of the trees.

        `superseded_limit`: the most bytes that superseded snapshots keep, whatever room there is,
        as long as `is_taken` says that somebody keeps those that go. More than that go step by
        step.
        """
        self._lock = threading.Lock()  # guards all below
        self._budget = budget
        self._superseded_limit = superseded_limit
        self._is_taken = is_taken
        self._shares: dict[ModelKey, _Share] = {}
        self._forgotten: list[tuple[TokenArray, float]] = []  # beginnings, and until when
        # The least recently used first.
        self._by_standing: dict[_Standing, OrderedDict[Node[_Kept], None]] = {
            standing: OrderedDict() for standing in _Standing
        }
        self._snapshot_bytes = dict.fromkeys(_Standing, 0)

    def __len__(self) -> int:
        with self._lock:
            return sum(len(share.tree) for share in self._shares.values())

    @property
    def budget(self) -> int:
        return self._budget

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return self._num_bytes()

    def usage(self, key: ModelKey) -> Usage:
        with self._lock:
            share = self._shares.get(key, _Share())
            num_bytes = share.snapshot_bytes + share.tree.num_bytes
            return Usage(len(share.tree), num_bytes, share.num_evicted)

    def find(self, key: ModelKey, tokens: TokenArray) -> Found | None:
        """The snapshot of the longest prefix; counts as a use of it and of those before it."""
        with self._lock:
            share = self._shares.get(key)
            prefixes = share.tree.prefixes(tokens) if share else []
            for node in prefixes:
                self._by_standing[_kept(node).standing].move_to_end(node)
            if not prefixes:
                return None
            longest = prefixes[-1]
            if not longest.children:
                self._place(longest, _Standing.NEWEST)  # what came behind it has been evicted
            return Found(longest.num_tokens, _kept(longest).snapshot)

    def put(
        self, key: ModelKey, tokens: TokenArray, snapshot: Snapshot, kind: SnapshotKind
    ) -> list[Evicted]:
        """Keeps a snapshot; returns what had to go for it, itself if it is too large.

        Where there is one for the same tokens, that stays: they are equal.
        """
        with self._lock:
            share = self._shares.setdefault(key, _Share())
            if snapshot.nbytes + tokens.nbytes + 2 * NODE_BYTES > self._budget:
                share.num_evicted += 1
                return [Evicted(key, tokens, snapshot, kind)]
            prefixes = share.tree.prefixes(tokens)
            if prefixes and prefixes[-1].num_tokens == len(tokens):
                node = prefixes.pop()
                kept = _kept(node)
                kept.kind = max(kept.kind, kind)
            else:
                kept = _Kept(key, snapshot, kind, _Standing.NEWEST)
                node = share.tree.insert(tokens, kept)
                share.snapshot_bytes += snapshot.nbytes
                self._by_standing[kept.standing][node] = None
                self._snapshot_bytes[kept.standing] += snapshot.nbytes
            if prefixes:
                self._place(prefixes[-1], _Standing.SUPERSEDED)
            self._place(node, _Standing.SUPERSEDED if node.children else _Standing.NEWEST)
            return self._make_room()

    def resize(self, budget: int) -> list[Evicted]:
        """Sets the budget; returns what had to go for it."""
        with self._lock:
            self._budget = budget
            return self._make_room()

    def drop(self, key: ModelKey) -> None:
        """Forgets everything of a model."""
        with self._lock:
            share = self._shares.pop(key, _Share())
            for node in share.tree:
                self._forget(node)

    def forget(self, beginning: TokenArray) -> None:
        """Lets go of the snapshots, of any model, behind texts that begin with these tokens, which
        `is_forgotten` then for a while.
        """
        with self._lock:
            self._forgotten.append((beginning.copy(), time.monotonic() + FORGETTING_S))
            del self._forgotten[:-_MAX_FORGOTTEN]
            for share in self._shares.values():
                for node in share.tree.beginning_with(beginning):
                    share.snapshot_bytes -= _kept(node).snapshot.nbytes
                    self._forget(node)
                    share.tree.remove(node)

    def is_forgotten(self, tokens: TokenArray) -> bool:
        """Whether a text begins with what was to be forgotten a moment ago: of a reply that was
        still being written then, or of what was read ahead for the next one.
        """
        with self._lock:
            now = time.monotonic()
            self._forgotten = [each for each in self._forgotten if each[1] > now]
            return any(
                np.array_equal(tokens[: len(beginning)], beginning)
                for beginning, _ in self._forgotten
            )

    def _place(self, node: Node[_Kept], standing: _Standing) -> None:
        """Makes a node the most recently used of those with this standing, or the nearest that its
        kind may have.
        """
        kept = _kept(node)
        if kept.kind is SnapshotKind.SYSTEM_PROMPT:
            standing = _Standing.NEWEST
        elif standing is _Standing.SUPERSEDED and kept.kind is SnapshotKind.CHECKPOINT:
            standing = _Standing.CHECKPOINT
        self._forget(node)
        kept.standing = standing
        self._by_standing[standing][node] = None
        self._snapshot_bytes[standing] += kept.snapshot.nbytes

    def _forget(self, node: Node[_Kept]) -> None:
        """Takes a node out of the order in which they go."""
        kept = _kept(node)
        del self._by_standing[kept.standing][node]
        self._snapshot_bytes[kept.standing] -= kept.snapshot.nbytes

    def _make_room(self) -> list[Evicted]:
        evicted = []
        while self._num_bytes() > self._budget:
            evicted.append(self._evict(self._standing_to_evict()))
        while len(evicted) < _AT_ONCE and self._is_over_limit():
            evicted.append(self._evict(self._superseded_to_evict()))
        return evicted

    def _evict(self, standing: _Standing) -> Evicted:
        node = next(iter(self._by_standing[standing]))
        kept = _kept(node)
        evicted = Evicted(kept.key, node.tokens, kept.snapshot, kept.kind)
        share = self._shares[kept.key]
        share.snapshot_bytes -= kept.snapshot.nbytes
        share.num_evicted += 1
        self._forget(node)
        share.tree.remove(node)
        return evicted

    def _num_bytes(self) -> int:
        of_trees = sum(share.tree.num_bytes for share in self._shares.values())
        return sum(self._snapshot_bytes.values()) + of_trees

    def _standing_to_evict(self) -> _Standing:
        has_newest = bool(self._by_standing[_Standing.NEWEST])
        if has_newest and self._superseded_bytes() <= self._budget // SUPERSEDED_PARTS:
            return _Standing.NEWEST
        return self._superseded_to_evict()

    def _superseded_to_evict(self) -> _Standing:
        has_checkpoints = bool(self._by_standing[_Standing.CHECKPOINT])
        return _Standing.CHECKPOINT if has_checkpoints else _Standing.SUPERSEDED

    def _superseded_bytes(self) -> int:
        return (
            self._snapshot_bytes[_Standing.CHECKPOINT] + self._snapshot_bytes[_Standing.SUPERSEDED]
        )

    def _is_over_limit(self) -> bool:
        limit = self._superseded_limit
        return limit is not None and self._superseded_bytes() > limit and self._is_taken()


def _kept(node: Node[_Kept]) -> _Kept:
    assert node.entry is not None
    return node.entry
