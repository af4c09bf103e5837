"""RWKV-7 inference: checkpoints, tokenizers, the model and its state, generation. No HTTP."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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

# PyTorch takes a second to import: `anser list` and `anser run` need only the errors.
_HOMES = {
    "AnserError": "errors",
    "CheckpointError": "errors",
    "Model": "model",
    "ModelConfig": "config",
    "OptionError": "errors",
    "State": "state",
    "load_model": "loading",
}


def __getattr__(name: str) -> object:
    """Imports an exported name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
