"""States in tests."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_core.state import State


def parts(state: State) -> tuple[Tensor, Tensor, Tensor]:
    return state.time_shift, state.channel_shift, state.wkv


def same(one: State, other: State) -> bool:
    """Whether two states are equal to the bit."""
    return all(torch.equal(*pair) for pair in zip(parts(one), parts(other), strict=True))
