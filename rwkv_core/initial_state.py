"""Tuned initial states: what a model has in its state before the first token of a text.

State tuning (RWKV-PEFT) trains the WKV states that texts begin with, and no weights. Its files hold
one tensor for each layer, `blocks.N.att.time_state` [H, N, N]. For RWKV-7 that is the authors' S as
it stands in their formulas, a value in every row; ours (`rwkv_core.wkv`) is the transpose. (RWKV-5
and 6, whose S has a key in every row, transpose such a file.) The token shifts begin at zero.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from rwkv_core.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from rwkv_core.checkpoint.base import PLAIN_TYPES
from rwkv_core.checkpoint.names import OUTER_NAMES, block_leaf
from rwkv_core.checkpoint.random_access import RandomAccessFile
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError, quoted
from rwkv_core.state import State

_LEAF = "att.time_state"

_WANTED = "Anser loads tuned initial states (time_state files)"
# Parts of names in files that change weights: LoRA's, and those of RWKV-PEFT's other methods.
_WEIGHT_ADAPTER = re.compile(r"\.(lora_\w+|bone|disha)(\.|$)", re.IGNORECASE)
_OF_WEIGHTS = f"is an adapter of weights (LoRA or the like); {_WANTED}: merge it into the model"


def read_initial_state(path: str | os.PathLike[str], config: ModelConfig) -> State:
    """The state, of batch size 1 and float32, out of a .pth or safetensors file.

    Raises CheckpointError for what is no tuned state of a model of these sizes; nothing larger than
    such a state is read.
    """
    _refuse_gguf(Path(path))
    with closing(open_checkpoint(path)) as checkpoint:
        _check(checkpoint, config)
        state = State.zeros(config)
        for layer in range(config.n_layer):
            values = checkpoint.read(_name(layer)).to(torch.float32)  # [H, N values, N keys]
            if not bool(torch.isfinite(values).all()):
                problem = f"tensor {_name(layer)} has values that are not finite; tune it again"
                raise CheckpointError(checkpoint.path, problem)
            state.wkv[layer, 0] = values.transpose(-1, -2)
    return state


def encode_initial_state(state: State) -> bytes:
    """A safetensors file, in float32, from which `read_initial_state` reads the same state.

    Equal states give equal bytes.
    """
    tensors: dict[str, Tensor] = {
        _name(layer): wkv.transpose(-1, -2).contiguous()
        for layer, wkv in enumerate(state.wkv[:, 0].cpu())
    }
    return save(tensors)


def _name(layer: int) -> str:
    return f"blocks.{layer}.{_LEAF}"


def _refuse_gguf(path: Path) -> None:
    """LoRA adapters of llama.cpp, which the reader of models would call no model."""
    if path.is_dir():
        return
    with RandomAccessFile(path) as file:
        is_gguf = file.read(0, min(file.size, 4)) == b"GGUF"
    if is_gguf:
        raise CheckpointError(path, "is a GGUF file; a tuned initial state is .pth or safetensors")


def _check(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Raises CheckpointError unless the tensors are those of a tuned state of such a model."""
    path, tensors = checkpoint.path, checkpoint.tensors
    foreign = _foreign(tensors)
    if foreign is not None:
        raise CheckpointError(path, foreign)
    if set(tensors) != {_name(layer) for layer in range(config.n_layer)}:
        problem = f"has states of {len(tensors)} layers"
        layers = f"layers 0 to {config.n_layer - 1}"
        raise CheckpointError(path, f"{problem}; the model has {layers}: it is of another model")
    shape = (config.n_head, config.head_size, config.head_size)
    for name, info in tensors.items():
        if info.shape != shape:
            problem = f"tensor {name} has shape {list(info.shape)}; the model's is {list(shape)}"
            raise CheckpointError(path, f"{problem}: it is of another model")
        if info.type_name not in PLAIN_TYPES:
            raise CheckpointError(path, f"tensor {name} is quantized; store it as F32 or BF16")


def _foreign(tensors: Mapping[str, TensorInfo]) -> str | None:
    """What a file is if it has any tensor that is no time_state."""
    others = [name for name in tensors if (block_leaf(name) or (0, ""))[1] != _LEAF]
    if not others:
        return None
    if any(_WEIGHT_ADAPTER.search(name) for name in others):
        return _OF_WEIGHTS
    if any(name in OUTER_NAMES for name in others):
        return f"is a model, not an adapter; {_WANTED}"
    return f"is no tuned initial state: it has the tensor {quoted(others[0])}"
