"""Initial weights of an RWKV-7 model that is trained from nothing.

The values follow the authors' recipe (RWKV-LM, RWKV-v7): each layer starts with a spread of decays
and lerps over its channels, low-rank products that begin at zero, and output matrices at zero so
that layers begin as the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rwkv_core.config import ModelConfig

# Exponents of the lerps over the channels: the smaller, the more a projection looks at the token
# before.
_LERP_EXPONENT = {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}


def initial_weight(name: str, config: ModelConfig) -> Tensor:
    """The initial value of the canonical tensor `name`, from torch's global generator, float32."""
    width = config.n_embd
    if name == "emb.weight":
        return torch.randn(config.vocab_size, width) * 0.02
    if name == "head.weight":
        return _uniform((config.vocab_size, width), 0.5 / math.sqrt(width))
    if not name.startswith("blocks.") or ".ln" in name.replace(".ln_x", ""):
        return torch.ones(width) if name.endswith("weight") else torch.zeros(width)
    _, index, mix, *rest = name.split(".")
    depth = int(index) / max(1, config.n_layer - 1)  # 0 in the first layer, 1 in the last
    to_zero = 1 - int(index) / config.n_layer  # 1 in the first layer, towards 0
    if mix == "ffn":
        return _channel_mix(rest[0], config, to_zero)
    if rest[0] == "ln_x":
        scale = ((1 + int(index)) / config.n_layer) ** 0.7
        return torch.full((width,), scale) if rest[1] == "weight" else torch.zeros(width)
    return _time_mix(rest[0], config, depth, to_zero)


def _time_mix(name: str, config: ModelConfig, depth: float, to_zero: float) -> Tensor:
    width = config.n_embd
    channel = torch.arange(width) / (width - 1)  # 0 to 1 over the channels
    zigzag = _zigzag(config)
    ranks = {
        "w": config.decay_rank,
        "a": config.iclr_rank,
        "v": config.value_rank,
        "g": config.gate_rank,
    }
    if name in _LERP_EXPONENT:
        return 1 - torch.pow(torch.arange(width) / width, _LERP_EXPONENT[name] * to_zero)
    if len(name) == 2 and name[0] in ranks and name[1] in "12":
        rank = ranks[name[0]]
        return torch.zeros(width, rank) if name[1] == "1" else _orthogonal(rank, width, 0.1)
    vectors: dict[str, Tensor] = {
        "w0": -6 + 6 * channel ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag,
        "a0": -0.19 + 0.3 * zigzag + 0.4 * (channel - 0.5),
        "v0": 0.73 - 0.4 * (channel - 0.5),
        "k_k": 0.71 - 0.1 * (channel - 0.5),
        "k_a": torch.full((width,), 1.02),
    }
    if name in vectors:
        return vectors[name]
    if name == "r_k":
        return torch.full((config.n_head, config.head_size), -0.04)
    scale = {"receptance": 0.5, "key": 0.05, "value": 0.5, "output": 0.0}[name]
    return _uniform((width, width), scale / math.sqrt(width))


def _channel_mix(name: str, config: ModelConfig, to_zero: float) -> Tensor:
    width = config.n_embd
    if name == "x_k":
        return 1 - torch.pow(torch.arange(width) / width, to_zero**4)
    if name == "key":
        return _uniform((config.n_ffn, width), 0.5 / math.sqrt(width))
    return torch.zeros(width, config.n_ffn)


def _zigzag(config: ModelConfig) -> Tensor:
    """Signed squares over the channels of each head, so that a head holds slow and fast decays."""
    middle = (config.head_size - 1) / 2
    position = (torch.arange(config.n_embd) % config.head_size - middle) / middle
    return position * position.abs()


def _uniform(shape: tuple[int, int], bound: float) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)


def _orthogonal(rows: int, columns: int, gain: float) -> Tensor:
    weight = torch.empty(rows, columns)
    return torch.nn.init.orthogonal_(weight, gain * max(1.0, math.sqrt(rows / columns)))
