"""What the cache keeps of a text: the state behind it, and the logits of its last token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from rwkv_core.own_memory import mapped_bytes, zero_floats
from rwkv_core.state import State

# What a snapshot takes beside its values: four tensors and the objects around them, as measured,
# rounded up.
OBJECT_BYTES = 5_000


class SnapshotKind(IntEnum):
    """Where in a chat a snapshot was taken. The greater, the more it is worth when not all fit."""

    CHECKPOINT = 0  # every so many tokens of a long text
    TURN = 1  # the end of a rendered turn, or of a reply as the next prompt will have it
    PROMPT_END = 2
    REPLY_END = 3
    SYSTEM_PROMPT = 4  # which many chats share


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A state and the logits [V] of the token before it, on the CPU. Nothing may change them.

    To go on from one, copy it: `slot.copy_(snapshot.state)` or `snapshot.state.clone()`. With the
    logits the next token is drawn without running the model again.
    """

    state: State  # of batch size 1
    logits: Tensor  # [V] float32

    def __post_init__(self) -> None:
        parts = (self.state.time_shift, self.state.channel_shift, self.state.wkv, self.logits)
        if self.state.batch_size != 1 or self.logits.ndim != 1:
            raise ValueError("a snapshot is of one sequence, with the logits of its last token")
        for part in parts:
            # A view would keep alive, uncounted, what it is a view of.
            is_whole = part.is_contiguous() and part.untyped_storage().nbytes() == part.nbytes
            if part.dtype != torch.float32 or part.device.type != "cpu" or not is_whole:
                raise ValueError("a snapshot has float32 on the CPU, in memory of its own")

    @classmethod
    def of(cls, state: State, logits: Tensor) -> Snapshot:
        """A copy, of views and of what is on another device too."""
        parts = (state.time_shift, state.channel_shift, state.wkv, logits)
        copies = zero_floats([part.shape for part in parts])
        for copy, part in zip(copies, parts, strict=True):
            copy.copy_(part.detach())
        return cls(State(*copies[:3]), copies[3])

    @property
    def nbytes(self) -> int:
        """Memory that it takes in all: where its values are few, much more than they."""
        state = self.state
        parts = (state.time_shift, state.channel_shift, state.wkv, self.logits)
        return OBJECT_BYTES + mapped_bytes([part.numel() for part in parts])
