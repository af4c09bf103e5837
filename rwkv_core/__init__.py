"""RWKV-7 inference: checkpoints, tokenizers, the model and its state, generation. No HTTP."""

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
