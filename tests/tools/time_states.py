"""Files of tuned initial states, as RWKV-PEFT saves them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rwkv_core.config import ModelConfig
from rwkv_core.model import Model

Tensors = dict[str, Tensor]


def time_state(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random, of the size of states that texts leave behind, and nowhere symmetric."""
    shape = (config.n_head, config.head_size, config.head_size)
    names = [f"blocks.{layer}.att.time_state" for layer in range(config.n_layer)]

    def values(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        return torch.empty(shape).normal_(0, 0.5, generator=generator).to(dtype)

    return {name: values(name) for name in names}


def state_behind(model: Model, text: str) -> Tensors:
    """A state with a meaning, for want of a tuned one: the WKV state behind a text."""
    wkv = model.forward(model.tokenizer.encode(text))[1].wkv[:, 0]  # [L, H, N keys, N values]
    return {
        f"blocks.{layer}.att.time_state": each.transpose(-1, -2).contiguous()
        for layer, each in enumerate(wkv)
    }


def write_time_state(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A `.pth` file, or safetensors by any other suffix."""
    if path.suffix == ".pth":
        torch.save(dict(tensors), path)
    else:
        save_file(dict(tensors), path)
    return path
