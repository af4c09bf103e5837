"""What computes a model, and what it says about itself: the kernels or PyTorch."""

from __future__ import annotations

import math

import torch

from rwkv_core import kernels
from rwkv_core.checkpoint import Checkpoint
from rwkv_core.checkpoint.base import PLAIN_TYPES
from rwkv_core.kernel_executor import KernelExecutor
from rwkv_core.model import Model


def isa(model: Model) -> str:
    """The instruction set in use: "avx512", or "PyTorch AVX512" without kernels."""
    in_kernels = kernels.isa() if _has_kernels(model) else None
    return in_kernels or f"PyTorch {torch.backends.cpu.get_cpu_capability()}"


def num_threads(model: Model) -> int:
    in_kernels = kernels.num_threads() if _has_kernels(model) else None
    return in_kernels or torch.get_num_threads()


def read_bandwidth(num_bytes: int) -> float | None:
    """Bytes/s at which the kernels' threads read that much memory; None without kernels."""
    extension = kernels.native()
    return extension.read_bandwidth(num_bytes) if extension else None


def reset_counters(model: Model) -> None:
    if isinstance(model.executor, KernelExecutor):
        model.executor.reset_counters()


def zero_channels(model: Model) -> tuple[int, int]:
    """Hidden channels of the FFN that were zero, of how many, since the reset; PyTorch has none."""
    if isinstance(model.executor, KernelExecutor):
        return model.executor.zero_channels()
    return 0, 0


def num_skipping_layers(model: Model) -> int:
    """Layers whose channel mix skips zero channels; PyTorch never does."""
    if isinstance(model.executor, KernelExecutor):
        return len(model.executor.layers_by_columns)
    return 0


def decode_weight_bytes(model: Model, checkpoint: Checkpoint) -> int:
    """What a decoded token reads: all weights but the embedding, of which it takes one row."""
    return model.num_weight_bytes - _memory_bytes(model, checkpoint, "emb.weight")


def _memory_bytes(model: Model, checkpoint: Checkpoint, name: str) -> int:
    """Memory that a matrix takes: as much as in the file in the kernels, but not in PyTorch."""
    info = checkpoint.tensors[name]
    if _has_kernels(model):
        return info.nbytes
    return math.prod(info.shape) * PLAIN_TYPES[model.executor.type_name].itemsize


def _has_kernels(model: Model) -> bool:
    return isinstance(model.executor, KernelExecutor)
