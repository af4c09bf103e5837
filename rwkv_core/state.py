"""The recurrent state: all that RWKV-7 remembers of a text, of one size at any length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv_core.config import ModelConfig


@dataclass(frozen=True)
class State:
    """State of B sequences. Never changed in place: `Model.forward` returns a new one.

    `time_shift` and `channel_shift` [L, B, D] are the normalised inputs of the last token (the
    token shift of time mix and channel mix); `wkv` [L, B, H, N value rows, N key columns]. All
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

    @property
    def batch_size(self) -> int:
        return self.wkv.shape[1]

    @property
    def nbytes(self) -> int:
        return self.time_shift.nbytes + self.channel_shift.nbytes + self.wkv.nbytes

    def clone(self) -> State:
        return State(self.time_shift.clone(), self.channel_shift.clone(), self.wkv.clone())
