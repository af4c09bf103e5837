"""The cache of one model's states, in memory and on disk, found by the tokens before them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from rwkv_core.cache.disk_tier import DiskTier
from rwkv_core.cache.key import ModelKey
from rwkv_core.cache.memory_tier import Evicted, MemoryTier
from rwkv_core.cache.snapshot import Snapshot, SnapshotKind
from rwkv_core.cache.tokens import TokenArray, TokenIds, as_tokens, in_scope


@dataclass(frozen=True)
class Hit:
    """The snapshot behind the first `num_tokens` tokens. It is the cache's: copy its state."""

    num_tokens: int
    snapshot: Snapshot


@dataclass(frozen=True)
class CacheStatistics:
    """Counts since the cache was made, and what it holds in memory now."""

    num_lookups: int
    num_memory_hits: int
    num_disk_hits: int
    num_tokens_looked_up: int
    num_tokens_reused: int
    num_evicted: int  # from memory
    num_snapshots: int
    num_bytes: int
    budget: int  # of the memory, which other models may share


class StateCache:
    """Snapshots of one model by token prefix. Safe for several threads.

    A snapshot that came from elsewhere, so that this process cannot vouch for it, belongs into a
    scope of its own, with all that is computed from it: it is found under that scope's name only.

    Memory and disk may serve several caches, which then have the same of both; whoever opened the
    disk closes it, after the last `put`.
    """

    def __init__(
        self, key: ModelKey, memory: MemoryTier | int, disk: DiskTier | None = None
    ) -> None:
        """`memory` may be the budget in bytes of one that is not shared. Beside it, `disk` holds
        what waits to be written.
        """
        self.key = key
        self._memory = memory if isinstance(memory, MemoryTier) else MemoryTier(memory)
        self._disk = disk
        self._lock = threading.Lock()  # guards all below
        self._num_lookups = self._num_memory_hits = self._num_disk_hits = 0
        self._num_tokens_looked_up = self._num_tokens_reused = 0

    def lookup(self, tokens: TokenIds, scope: str = "") -> Hit | None:
        """The snapshot of the longest prefix of `tokens`, all of them included.

        What is found on disk is read and then kept in memory: microseconds become milliseconds.
        """
        num_asked = len(tokens)
        ids = in_scope(as_tokens(tokens), scope)
        num_before = len(ids) - num_asked  # the mark of the scope
        in_memory = self._memory.find(self.key, ids)
        num_tokens = in_memory.num_tokens if in_memory else 0
        on_disk = None
        if self._disk is not None and num_tokens < len(ids):
            on_disk = self._disk.lookup(self.key, ids, longer_than=num_tokens)
        with self._lock:
            self._num_lookups += 1
            self._num_tokens_looked_up += num_asked
            self._num_disk_hits += on_disk is not None
            self._num_memory_hits += on_disk is None and in_memory is not None
            num_found = on_disk.num_tokens if on_disk else num_tokens
            self._num_tokens_reused += max(num_found - num_before, 0)
        if on_disk is not None:
            self._keep(ids[: on_disk.num_tokens], on_disk.snapshot, on_disk.kind)
            return Hit(on_disk.num_tokens - num_before, on_disk.snapshot)
        if in_memory is None:
            return None
        if self._disk is not None:  # so that the disk, too, knows what is in use
            self._disk.touch(self.key, ids[:num_tokens])
        return Hit(num_tokens - num_before, in_memory.snapshot)

    def put(
        self, tokens: TokenIds, snapshot: Snapshot, kind: SnapshotKind, scope: str = ""
    ) -> None:
        """Keeps the snapshot behind `tokens`, of which there is at least one; takes it over.

        Copies no state and waits for nothing. All but checkpoints are written to disk at once;
        checkpoints when they leave the memory.
        """
        if not len(tokens):
            raise ValueError("a snapshot is behind at least one token")
        ids = in_scope(as_tokens(tokens), scope)
        if self._memory.is_forgotten(ids):
            return
        if self._disk is not None and kind is not SnapshotKind.CHECKPOINT:
            self._disk.put(self.key, ids, snapshot, kind)
        self._keep(ids, snapshot, kind)

    def drop_memory(self) -> None:
        """Forgets what is in memory, when the model goes; what is on disk stays."""
        self._memory.drop(self.key)

    def statistics(self) -> CacheStatistics:
        usage = self._memory.usage(self.key)
        with self._lock:
            return CacheStatistics(
                num_lookups=self._num_lookups,
                num_memory_hits=self._num_memory_hits,
                num_disk_hits=self._num_disk_hits,
                num_tokens_looked_up=self._num_tokens_looked_up,
                num_tokens_reused=self._num_tokens_reused,
                num_evicted=usage.num_evicted,
                num_snapshots=usage.num_snapshots,
                num_bytes=usage.num_bytes,
                budget=self._memory.budget,
            )

    def _keep(self, tokens: TokenArray, snapshot: Snapshot, kind: SnapshotKind) -> None:
        """In memory; what has to go for it, to disk. Not what was forgotten while it was read."""
        if self._memory.is_forgotten(tokens):
            return
        write_evicted(self._memory.put(self.key, tokens, snapshot, kind), self._disk)


def write_evicted(evicted: Iterable[Evicted], disk: DiskTier | None) -> None:
    """Hands what has left the memory, of whatever model, over to the disk that goes with it."""
    if disk is not None:
        for each in evicted:
            disk.put(each.key, each.tokens, each.snapshot, each.kind)
