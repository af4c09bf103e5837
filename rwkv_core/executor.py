"""What runs a model's mathematics: the seam between `Model` and PyTorch or the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rwkv_core.state import State

# What PyTorch uses where it runs a model; the threads that run kernels let it use one.
NUM_TORCH_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one text, and the state before them: after a pass, that behind them."""

    token_ids: Tensor  # [T] integers on the CPU, T >= 1
    state: State  # of batch size 1; it may be a view (`State.split`)
    num_logits: int = 1  # of the last so many tokens, 0 to T


class Executor(Protocol):
    """The weights of a model, ready to compute with.

    Safe for use by several threads at once, as long as no state is in two passes.
    """

    @property
    def device(self) -> torch.device:
        """Where states and logits are."""

    @property
    def type_name(self) -> str:
        """The type that most weights have in memory: "Q8_0", "BF16", …"""

    @property
    def num_weight_bytes(self) -> int:
        """Memory that the weights take."""

    @property
    def description(self) -> str:
        """For a log: what computes, and how."""

    def advance(self, segments: Sequence[Segment]) -> Tensor:
        """Reads all segments; any lengths may come together. Changes their states in place.

        Returns float32 logits [sum of num_logits, V] in the order of the segments. Trusts the
        caller (`Model.advance_batch`) that tokens are in the vocabulary and no state comes twice.
        After an exception the states are worthless.
        """

    def final_hidden(self, token_ids: Sequence[int], states: Sequence[State]) -> Tensor:
        """The residual stream behind `ln_out`, which the head reads, of one more token of each
        text: float32 [S, D] on the CPU. Leaves the states, of batch size 1, as they are.
        """
