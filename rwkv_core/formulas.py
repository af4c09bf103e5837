"""RWKV-7 ("x070") as its formulas: https://arxiv.org/abs/2503.14456.

Shapes: B sequences, T tokens, D = `n_embd`, H heads of N = `head_size` channels, R a low rank. The
functions serve inference and training alike, and are what the kernels are measured against; they
follow the dtype of the weights for the large products and keep the residual stream, the norms, the
decay and the recurrence in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_core.config import ModelConfig
from rwkv_core.state import State
from rwkv_core.wkv import wkv_sequence, wkv_step

# log w = -exp(-0.5) * sigmoid(...): keeps the decay in (exp(-0.607), 1) = (0.545, 1), the range it
# was trained in.
_LOG_DECAY_SCALE = -math.exp(-0.5)


@dataclass(frozen=True)
class NormWeights:
    weight: Tensor  # [D]
    bias: Tensor  # [D]


@dataclass(frozen=True)
class TimeMixWeights:
    """Vectors [D]; low-rank pairs [D, R] and [R, D]; projections [D, D]. v0, v1, v2 are None in
    layer 0.
    """

    x_r: Tensor
    x_w: Tensor
    x_k: Tensor
    x_v: Tensor
    x_a: Tensor
    x_g: Tensor
    w0: Tensor
    w1: Tensor
    w2: Tensor
    a0: Tensor
    a1: Tensor
    a2: Tensor
    g1: Tensor
    g2: Tensor
    k_k: Tensor
    k_a: Tensor
    r_k: Tensor  # [H, N]
    receptance: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    ln_x: NormWeights
    v0: Tensor | None = None
    v1: Tensor | None = None
    v2: Tensor | None = None


@dataclass(frozen=True)
class ChannelMixWeights:
    x_k: Tensor  # [D]
    key: Tensor  # [F, D]
    value: Tensor  # [D, F]


@dataclass(frozen=True)
class LayerWeights:
    ln1: NormWeights
    att: TimeMixWeights
    ln2: NormWeights
    ffn: ChannelMixWeights


@dataclass(frozen=True)
class Weights:
    emb: Tensor  # [V, D]
    ln0: NormWeights
    layers: tuple[LayerWeights, ...]
    ln_out: NormWeights
    head: Tensor  # [V, D]

    @classmethod
    def load(cls, config: ModelConfig, read: Callable[[str], Tensor]) -> Weights:
        """Builds the weights from `read(name)`, called once per canonical name (the authors' `.pth`
        names).
        """

        def norm(name: str) -> NormWeights:
            return NormWeights(read(f"{name}.weight"), read(f"{name}.bias"))

        def layer(index: int) -> LayerWeights:
            prefix = f"blocks.{index}"
            skipped = ("v0", "v1", "v2") if index == 0 else ()
            return LayerWeights(
                ln1=norm(f"{prefix}.ln1"),
                att=_read_fields(TimeMixWeights, f"{prefix}.att", read, norm, skipped),
                ln2=norm(f"{prefix}.ln2"),
                ffn=_read_fields(ChannelMixWeights, f"{prefix}.ffn", read, norm),
            )

        return cls(
            emb=read("emb.weight"),
            ln0=norm("blocks.0.ln0"),
            layers=tuple(layer(index) for index in range(config.n_layer)),
            ln_out=norm("ln_out"),
            head=read("head.weight"),
        )

    @property
    def nbytes(self) -> int:
        return _nbytes(self)


def _nbytes(weights: object) -> int:
    """Bytes of all tensors in a tree of dataclasses and tuples."""
    if isinstance(weights, Tensor):
        return weights.nbytes
    if is_dataclass(weights):
        return sum(_nbytes(getattr(weights, each.name)) for each in fields(weights))
    return sum(map(_nbytes, weights)) if isinstance(weights, tuple) else 0


_PROJECTIONS = ("receptance", "key", "value", "output")
_Mix = TypeVar("_Mix", TimeMixWeights, ChannelMixWeights)


def _read_fields(
    kind: type[_Mix],
    prefix: str,
    read: Callable[[str], Tensor],
    norm: Callable[[str], NormWeights],
    skipped: Sequence[str] = (),
) -> _Mix:
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(kind) if field.name not in skipped):
        if name == "ln_x":
            values[name] = norm(f"{prefix}.{name}")
        else:
            values[name] = read(f"{prefix}.{name}" + (".weight" if name in _PROJECTIONS else ""))
    return kind(**values)


def is_matrix(name: str) -> bool:
    """Whether a canonical tensor takes part in a matrix product, so that it is kept in the model's
    dtype.

    Everything else (norms, lerps, w0, a0, v0, k_k, k_a, r_k) is a vector and stays float32.
    """
    last = name.rsplit(".", 1)[-1]
    if last in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"):
        return True
    return last == "weight" and not name.rsplit(".", 2)[-2].startswith("ln")


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] times weight [out, in] transposed, in the weight's dtype, returned in float32."""
    return F.linear(x.to(weight.dtype), weight).float()


def low_rank(x: Tensor, down: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(x down) up, with down [D, R] and up [R, D]: the authors' row vectors."""
    return (activation(x.to(down.dtype) @ down) @ up).float()


def _identity(x: Tensor) -> Tensor:
    return x


def layer_norm(x: Tensor, norm: NormWeights, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, eps)


def token_shift(h: Tensor, previous: Tensor) -> Tensor:
    """The difference to the token before, [B, T, D]; `previous` [B, D] came before the first."""
    return torch.cat((previous.unsqueeze(1), h[:, :-1]), 1) - h


def time_mix(
    h: Tensor,  # [B, T, D], after ln1
    previous: Tensor,  # [B, D]
    wkv: Tensor,  # [B, H, N key rows, N value columns]
    v_first: Tensor | None,  # [B, T, D], layer 0's values; None in layer 0
    p: TimeMixWeights,
    config: ModelConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output [B, T, D], the new WKV state and v_first."""
    batch, length, width = h.shape
    heads = (batch, length, config.n_head, config.head_size)
    dx = token_shift(h, previous)

    r = linear(torch.addcmul(h, dx, p.x_r), p.receptance)
    log_w = _LOG_DECAY_SCALE * torch.sigmoid(
        p.w0 + low_rank(torch.addcmul(h, dx, p.x_w), p.w1, p.w2, torch.tanh)
    )
    k = linear(torch.addcmul(h, dx, p.x_k), p.key)
    xv = torch.addcmul(h, dx, p.x_v)
    v = linear(xv, p.value)
    a = torch.sigmoid(p.a0 + low_rank(torch.addcmul(h, dx, p.x_a), p.a1, p.a2, _identity))
    g = low_rank(torch.addcmul(h, dx, p.x_g), p.g1, p.g2, torch.sigmoid)

    if v_first is None or p.v0 is None or p.v1 is None or p.v2 is None:
        v_first = v
    else:
        v = torch.lerp(v, v_first, torch.sigmoid(p.v0 + low_rank(xv, p.v1, p.v2, _identity)))

    kk = F.normalize((k * p.k_k).view(heads), dim=-1, eps=1e-12)
    k = k * torch.addcmul(1 - p.k_a, a, p.k_a)
    r, log_w, k, a, v_heads = (x.view(heads) for x in (r, log_w, k, a, v))

    if length == 1:
        step = (x.squeeze(1) for x in (r, log_w, k, v_heads, -kk, kk * a))
        y, wkv = wkv_step(wkv, *step)
    else:
        y, wkv = wkv_sequence(wkv, r, log_w, k, v_heads, -kk, kk * a)

    y = F.group_norm(
        y.reshape(batch * length, width),
        config.n_head,
        p.ln_x.weight,
        p.ln_x.bias,
        config.group_norm_eps,
    ).view(batch, length, width)
    bonus = (r * k * p.r_k).sum(-1, keepdim=True) * v_heads  # what the current token says at once
    return linear((y + bonus.view_as(y)) * g, p.output), wkv, v_first


def channel_mix(h: Tensor, previous: Tensor, p: ChannelMixWeights) -> Tensor:
    """h [B, T, D] after ln2 -> [B, T, D]. relu^2 leaves most of the hidden channels at exactly
    zero.
    """
    k = torch.relu(linear(torch.addcmul(h, token_shift(h, previous), p.x_k), p.key))
    return linear(k.square(), p.value)


def forward_hidden(
    weights: Weights, config: ModelConfig, tokens: Tensor, state: State
) -> tuple[Tensor, State]:
    """Token ids [B, T], T >= 1 -> the residual stream after `ln_out` [B, T, D], new state."""
    eps = config.layer_norm_eps
    x = layer_norm(F.embedding(tokens, weights.emb).float(), weights.ln0, eps)
    v_first: Tensor | None = None
    time_shift, channel_shift, wkv = [], [], []
    for index, layer in enumerate(weights.layers):
        h = layer_norm(x, layer.ln1, eps)
        mixed, layer_wkv, v_first = time_mix(
            h, state.time_shift[index], state.wkv[index], v_first, layer.att, config
        )
        time_shift.append(h[:, -1])
        wkv.append(layer_wkv)
        x = x + mixed

        h = layer_norm(x, layer.ln2, eps)
        channel_shift.append(h[:, -1])
        x = x + channel_mix(h, state.channel_shift[index], layer.ffn)
    new_state = State(torch.stack(time_shift), torch.stack(channel_shift), torch.stack(wkv))
    return layer_norm(x, weights.ln_out, eps), new_state
