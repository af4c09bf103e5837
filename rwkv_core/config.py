"""The sizes of one RWKV-7 model, all of them read from the shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of an RWKV-7 ("x070") model.

    `n_embd` is the width D of the residual stream, `n_ffn` the hidden width of the channel mix (4 D
    in all released models), and the four ranks are the inner widths of the low-rank products for
    the decay w, the in-context learning rate a, the value residual v and the gate g.
    """

    n_layer: int
    n_embd: int
    head_size: int
    vocab_size: int
    n_ffn: int
    decay_rank: int
    iclr_rank: int
    value_rank: int
    gate_rank: int
    layer_norm_eps: float = 1e-5

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_size

    @property
    def group_norm_eps(self) -> float:
        """Eps of `ln_x`: 64e-5 at the head size of 64, scaled as the authors' code scales it."""
        return 1e-5 * self.head_size


def state_nbytes(n_layer: int, n_embd: int, head_size: int) -> int:
    """Of the state of one sequence: two token shifts and the WKV state of each layer, float32."""
    shift = n_layer * n_embd
    wkv = shift * head_size  # H heads of N x N are D x N values
    return 4 * (2 * shift + wkv)
