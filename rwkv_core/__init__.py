"""RWKV-7 inference: checkpoints, tokenizers, the model and its state, generation. No HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkv_core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from rwkv_core.config import ModelConfig
    from rwkv_core.errors import AnserError, CheckpointError, OptionError
    from rwkv_core.loading import load_model
    from rwkv_core.model import Model
    from rwkv_core.state import State

__all__ = [
    "AnserError",
    "CheckpointError",
    "Model",
    "ModelConfig",
    "OptionError",
    "State",
    "load_model",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "AnserError": "errors",
        "CheckpointError": "errors",
        "Model": "model",
        "ModelConfig": "config",
        "OptionError": "errors",
        "State": "state",
        "load_model": "loading",
    },
)
