"""The recurrent state: all that RWKV-7 remembers of a text, of one size at any length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rwkv_core.config import ModelConfig


@dataclass(frozen=True)
class State:
    """State of B sequences. `Model.advance` changes it in place; `Model.forward` leaves it alone.

    `time_shift` and `channel_shift` [L, B, D] are the normalised inputs of the last token (the
    token shift of time mix and channel mix); `wkv` [L, B, H, N key rows, N value columns]. All
    float32.
    """

    time_shift: Tensor
    channel_shift: Tensor
    wkv: Tensor

    @classmethod
    def zeros(
        cls, config: ModelConfig, batch_size: int = 1, device: torch.device | str = "cpu"
    ) -> State:
        """The state before any token."""
        shift = (config.n_layer, batch_size, config.n_embd)
        size = config.head_size
        return cls(
            torch.zeros(shift, device=device),
            torch.zeros(shift, device=device),
            torch.zeros((config.n_layer, batch_size, config.n_head, size, size), device=device),
        )

    @classmethod
    def cat(cls, states: Sequence[State]) -> State:
        """The sequences of several states in one, in memory of its own."""
        return cls(
            torch.cat([state.time_shift for state in states], 1),
            torch.cat([state.channel_shift for state in states], 1),
            torch.cat([state.wkv for state in states], 1),
        )

    @property
    def batch_size(self) -> int:
        return self.wkv.shape[1]

    @property
    def nbytes(self) -> int:
        return self.time_shift.nbytes + self.channel_shift.nbytes + self.wkv.nbytes

    def clone(self) -> State:
        copy = State(*map(torch.empty_like, (self.time_shift, self.channel_shift, self.wkv)))
        copy.copy_(self)
        return copy

    def split(self) -> list[State]:
        """Every sequence by itself, as views: what changes them changes this state."""
        parts = (self.time_shift, self.channel_shift, self.wkv)
        rows = (part.unsqueeze(2).unbind(1) for part in parts)
        return [State(*row) for row in zip(*rows, strict=True)]

    def copy_(self, other: State) -> None:
        """Takes over the values of another state of the same sizes."""
        _copy(other.time_shift, self.time_shift)
        _copy(other.channel_shift, self.channel_shift)
        _copy(other.wkv, self.wkv)


def _copy(source: Tensor, target: Tensor) -> None:
    if source.device.type == target.device.type == "cpu":
        # In one thread: PyTorch's own threads would take turns with the kernels', and where the
        # processor is busy a copy would take a hundred times as long.
        np.copyto(target.numpy(), source.numpy())
    else:
        target.copy_(source)
