"""The recurrent state: all that RWKV-7 remembers of a text, of one size at any length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rwkv_core.config import ModelConfig, state_nbytes
from rwkv_core.own_memory import zero_floats


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
        shapes = (shift, shift, (config.n_layer, batch_size, config.n_head, size, size))
        if torch.device(device).type == "cpu":
            parts = zero_floats(shapes)
            # Written now: a pass that finds no memory yet waits for it page by page, twice each
            # (the first reads get a page of zeros), 20 ms for a state of 6 MB instead of 5.
            for part in parts:
                part.zero_()
            return cls(*parts)
        return cls(*(torch.zeros(shape, device=device) for shape in shapes))

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

    @cached_property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """L, B, D, H and N. Raises ValueError for parts that do not belong together."""
        layers, batch, width = self.time_shift.shape
        _, _, heads, size, _ = self.wkv.shape
        if (
            self.channel_shift.shape != self.time_shift.shape
            or self.wkv.shape != (layers, batch, heads, size, size)
            or heads * size != width
        ):
            raise ValueError("a state has [L, B, D], [L, B, D] and [L, B, H, N, N] values")
        return layers, batch, width, heads, size

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """For native code: address and floats from layer to layer of each part of one sequence.

        Raises ValueError for what is no contiguous float32 on the CPU.
        """
        found: list[int] = []
        for part in (self.time_shift, self.channel_shift, self.wkv):
            is_float32 = part.dtype == torch.float32 and part.device.type == "cpu"
            if not is_float32 or not part[0].is_contiguous():
                raise ValueError("a state for the kernels is contiguous float32 on the CPU")
            found += (part.data_ptr(), part.stride(0))
        return tuple(found)

    @staticmethod
    def nbytes_of(config: ModelConfig) -> int:
        """Of the state of one sequence, without making one."""
        return state_nbytes(config.n_layer, config.n_embd, config.head_size)

    @property
    def nbytes(self) -> int:
        return self.time_shift.nbytes + self.channel_shift.nbytes + self.wkv.nbytes

    def clone(self) -> State:
        parts = (self.time_shift, self.channel_shift, self.wkv)
        if self.wkv.device.type != "cpu":
            return State(*(part.clone() for part in parts))
        copy = State(*zero_floats([part.shape for part in parts]))
        copy.copy_(self)
        return copy

    def to(self, device: torch.device) -> State:
        """The same on a device: this one itself if it is there."""
        return State(self.time_shift.to(device), self.channel_shift.to(device), self.wkv.to(device))

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
