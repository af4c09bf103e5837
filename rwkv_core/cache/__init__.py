"""Exact snapshots of the recurrent state, found by the tokens before them, in memory and on disk.

A scheduler asks `StateCache.lookup` where to begin, copies the state into its slot, and gives the
cache a `Snapshot.of` the slot wherever a later prompt may part from this one.
"""

from rwkv_core.cache.disk_tier import DiskStatistics, DiskTier
from rwkv_core.cache.key import ModelKey, Numerics
from rwkv_core.cache.memory_tier import MemoryTier
from rwkv_core.cache.snapshot import Snapshot, SnapshotKind
from rwkv_core.cache.state_cache import CacheStatistics, Hit, StateCache, write_evicted
from rwkv_core.cache.state_file import load_state, save_state
from rwkv_core.cache.tokens import TokenArray, TokenIds, as_tokens

__all__ = [
    "CacheStatistics",
    "DiskStatistics",
    "DiskTier",
    "Hit",
    "MemoryTier",
    "ModelKey",
    "Numerics",
    "Snapshot",
    "SnapshotKind",
    "StateCache",
    "TokenArray",
    "TokenIds",
    "as_tokens",
    "load_state",
    "save_state",
    "write_evicted",
]
