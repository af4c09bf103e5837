"""Snapshots in memory, within a budget in bytes.

What goes when the budget is full: a snapshot behind which the cache has seen the same chat go on is
superseded; only an edit, a retry or a branch needs it again. Superseded ones may keep a quarter of
the budget (more where there is room), so that one long chat cannot push out the newest snapshots of
the others, nor a thousand chats that never come back the turns of the one in use. On either side
the least recently used goes first, superseded checkpoints of long texts before ends of turns.
System prompts count as newest whatever follows them. Using a snapshot uses those before it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from rwkv_core.cache.prefix_tree import NODE_BYTES, Node, PrefixTree
from rwkv_core.cache.snapshot import Snapshot, SnapshotKind
from rwkv_core.cache.tokens import TokenArray

# Of the budget, what superseded snapshots may keep when the newest ones need room: one part in so
# many. The tier on disk divides its budget in the same way.
SUPERSEDED_PARTS = 4


class _Standing(Enum):
    CHECKPOINT = "superseded checkpoint"
    SUPERSEDED = "superseded"
    NEWEST = "newest"


@dataclass
class _Kept:
    snapshot: Snapshot
    kind: SnapshotKind
    standing: _Standing


@dataclass(frozen=True)
class Found:
    """A snapshot for the first `num_tokens` tokens that were looked up."""

    num_tokens: int
    snapshot: Snapshot


@dataclass(frozen=True)
class Evicted:
    """A snapshot that the tier no longer holds."""

    tokens: TokenArray
    snapshot: Snapshot
    kind: SnapshotKind


class MemoryTier:
    """Snapshots by the tokens before them. Not safe for several threads at once."""

    def __init__(self, budget: int) -> None:
        """`budget` in bytes: of states and logits, and of tokens and nodes of the tree."""
        self.budget = budget
        self._tree: PrefixTree[_Kept] = PrefixTree()
        # The least recently used first.
        self._by_standing: dict[_Standing, OrderedDict[Node[_Kept], None]] = {
            standing: OrderedDict() for standing in _Standing
        }
        self._snapshot_bytes = dict.fromkeys(_Standing, 0)

    def __len__(self) -> int:
        return len(self._tree)

    @property
    def num_bytes(self) -> int:
        return sum(self._snapshot_bytes.values()) + self._tree.num_bytes

    def find(self, tokens: TokenArray) -> Found | None:
        """The snapshot of the longest prefix; counts as a use of it and of those before it."""
        prefixes = self._tree.prefixes(tokens)
        for node in prefixes:
            self._by_standing[_kept(node).standing].move_to_end(node)
        if not prefixes:
            return None
        longest = prefixes[-1]
        if not longest.children:
            self._place(longest, _Standing.NEWEST)  # what came behind it has been evicted
        return Found(longest.num_tokens, _kept(longest).snapshot)

    def put(self, tokens: TokenArray, snapshot: Snapshot, kind: SnapshotKind) -> list[Evicted]:
        """Keeps a snapshot; returns what had to go for it, itself if it is too large.

        Where there is one for the same tokens, that stays: they are equal.
        """
        if snapshot.nbytes + tokens.nbytes + 2 * NODE_BYTES > self.budget:
            return [Evicted(tokens, snapshot, kind)]
        prefixes = self._tree.prefixes(tokens)
        if prefixes and prefixes[-1].num_tokens == len(tokens):
            node = prefixes.pop()
            kept = _kept(node)
            kept.kind = max(kept.kind, kind)
        else:
            kept = _Kept(snapshot, kind, _Standing.NEWEST)
            node = self._tree.insert(tokens, kept)
            self._by_standing[kept.standing][node] = None
            self._snapshot_bytes[kept.standing] += snapshot.nbytes
        if prefixes:
            self._place(prefixes[-1], _Standing.SUPERSEDED)
        self._place(node, _Standing.SUPERSEDED if node.children else _Standing.NEWEST)
        return self._make_room()

    def _place(self, node: Node[_Kept], standing: _Standing) -> None:
        """Makes a node the most recently used of those with this standing, or the nearest that its
        kind may have.
        """
        kept = _kept(node)
        if kept.kind is SnapshotKind.SYSTEM_PROMPT:
            standing = _Standing.NEWEST
        elif standing is _Standing.SUPERSEDED and kept.kind is SnapshotKind.CHECKPOINT:
            standing = _Standing.CHECKPOINT
        del self._by_standing[kept.standing][node]
        self._snapshot_bytes[kept.standing] -= kept.snapshot.nbytes
        kept.standing = standing
        self._by_standing[standing][node] = None
        self._snapshot_bytes[standing] += kept.snapshot.nbytes

    def _make_room(self) -> list[Evicted]:
        evicted = []
        while self.num_bytes > self.budget:
            node = next(iter(self._by_standing[self._standing_to_evict()]))
            kept = _kept(node)
            evicted.append(Evicted(node.tokens, kept.snapshot, kept.kind))
            del self._by_standing[kept.standing][node]
            self._snapshot_bytes[kept.standing] -= kept.snapshot.nbytes
            self._tree.remove(node)
        return evicted

    def _standing_to_evict(self) -> _Standing:
        checkpoints = self._snapshot_bytes[_Standing.CHECKPOINT]
        superseded = checkpoints + self._snapshot_bytes[_Standing.SUPERSEDED]
        has_newest = bool(self._by_standing[_Standing.NEWEST])
        if has_newest and superseded <= self.budget // SUPERSEDED_PARTS:
            return _Standing.NEWEST
        return _Standing.CHECKPOINT if checkpoints else _Standing.SUPERSEDED


def _kept(node: Node[_Kept]) -> _Kept:
    assert node.entry is not None
    return node.entry
