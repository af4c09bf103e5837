"""Model files of every format, read under one set of names: the authors' `.pth` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkv_core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from rwkv_core.checkpoint.architecture import read_config, tensor_shapes
    from rwkv_core.checkpoint.base import Checkpoint, StoredCheckpoint, TensorInfo
    from rwkv_core.checkpoint.opening import open_checkpoint

__all__ = [
    "Checkpoint",
    "StoredCheckpoint",
    "TensorInfo",
    "open_checkpoint",
    "read_config",
    "tensor_shapes",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Checkpoint": "base",
        "StoredCheckpoint": "base",
        "TensorInfo": "base",
        "open_checkpoint": "opening",
        "read_config": "architecture",
        "tensor_shapes": "architecture",
    },
)
