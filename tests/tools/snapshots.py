"""Snapshots in tests: each can be told by its values to be that of its tokens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from rwkv_core.cache import ModelKey, Snapshot, as_tokens
from rwkv_core.config import ModelConfig
from rwkv_core.state import State
from tests.tools.random_checkpoint import TINY
from tests.tools.states import same

KEY = ModelKey("a" * 64, "b" * 64)


def snapshot_of(tokens: Sequence[int], config: ModelConfig = TINY) -> Snapshot:
    """What a model might compute: random, and different for any other tokens."""
    generator = torch.Generator().manual_seed(zlib.crc32(as_tokens(tokens).tobytes()))
    state = State.zeros(config)
    for part in (state.time_shift, state.channel_shift, state.wkv):
        part.normal_(generator=generator)
    return Snapshot(state, torch.randn(config.vocab_size, generator=generator))


def equal(one: Snapshot, other: Snapshot) -> bool:
    """To the bit, for values without NaN."""
    return same(one.state, other.state) and torch.equal(one.logits, other.logits)


def is_of(snapshot: Snapshot, tokens: Sequence[int]) -> bool:
    return equal(snapshot, snapshot_of(tokens))
