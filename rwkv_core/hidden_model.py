"""Hidden states out of the kernels: what the head reads, which `forward` keeps to itself.

A second model shares the matrices of the first and has one layer more, whose first norm is
`ln_out`. What a time mix remembers of a token is its normed input: behind a pass, the shift state
of the layer more is the residual stream behind `ln_out`, made by the same kernels. The layer's
other weights are those of the last layer, and what comes out of it is not used.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rwkv_core import kernels
from rwkv_core.checkpoint import StoredCheckpoint, open_checkpoint
from rwkv_core.checkpoint.architecture import required_names
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError
from rwkv_core.formulas import is_matrix
from rwkv_core.kernels.interface import Native, NativeMatrix, NativeModel
from rwkv_core.state import State

# Texts of one pass: their states are copied for it.
_MAX_TEXTS = 8
# Layer 0 has no value residual; where it is the only one, what has the same sizes stands in.
_STAND_INS = {"v0": "a0", "v1": "a1", "v2": "a2"}


@dataclass(frozen=True)
class SourceFile:
    """A model's file as it was when it was loaded."""

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Raises CheckpointError if it is not there."""
        try:
            found = path.stat()
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
        return cls(path, found.st_size, found.st_mtime_ns)

    def open(self) -> StoredCheckpoint:
        """Raises CheckpointError if it is another one by now."""
        if self.of(self.path) != self:
            raise CheckpointError(
                self.path, "was changed after its model was loaded; unload the model and try again"
            )
        return open_checkpoint(self.path)


class HiddenModel:
    """See the module. Safe for use by several threads, whose passes follow one another."""

    def __init__(self, model: NativeModel, config: ModelConfig) -> None:
        """`config` is that of the model it was made from."""
        self._model = model
        self._config = config
        self._wide = replace(config, n_layer=config.n_layer + 1)
        self._states: list[State] = []  # of the wide model; made when they are first used
        self._guard = threading.Lock()

    @classmethod
    def read(
        cls,
        native: Native,
        config: ModelConfig,
        matrices: Mapping[str, NativeMatrix],
        source: SourceFile,
    ) -> HiddenModel:
        """With `matrices`, and what else a model has, which is little but for the embedding, from
        the file. Raises CheckpointError or MemoryError.
        """
        model = native.Model(
            config.n_layer + 1,
            config.n_embd,
            config.head_size,
            config.n_ffn,
            config.vocab_size,
            config.layer_norm_eps,
            config.group_norm_eps,
        )
        with closing(source.open()) as checkpoint:
            for name in required_names(config.n_layer + 1):
                stored = _stored_name(name, config.n_layer)
                if name == "emb.weight":
                    set_embedding(model, checkpoint)
                elif is_matrix(name):
                    model.set_matrix(name, matrices[stored])
                else:
                    values = checkpoint.read(stored).to(torch.float32).reshape(-1)
                    model.set_vector(name, values.numpy())
        model.finish()
        return cls(model, config)

    def final_hidden(self, token_ids: Sequence[int], states: Sequence[State]) -> Tensor:
        """See `Executor.final_hidden`."""
        found = torch.empty(len(states), self._config.n_embd)
        with self._guard:
            for first in range(0, len(states), _MAX_TEXTS):
                part = slice(first, first + _MAX_TEXTS)
                self._read(token_ids[part], states[part], found[part])
        return found

    def _read(self, token_ids: Sequence[int], states: Sequence[State], out: Tensor) -> None:
        """A pass; `out` [S, D]."""
        n_layer, count = self._config.n_layer, len(states)
        while len(self._states) < count:
            self._states.append(State.zeros(self._wide))
        wide = self._states[:count]
        for state, target in zip(states, wide, strict=True):
            target.first_layers(n_layer).copy_(state)
            target.last_layers(1).zero_()
        starts = np.arange(count + 1, dtype=np.int32)
        no_rows, no_logits = np.empty(0, np.int32), torch.empty(0, self._config.vocab_size)
        tokens = np.array(token_ids, np.int32)
        kernels.forward(self._model, tokens, starts, wide, no_rows, no_logits)
        for row, state in zip(out, wide, strict=True):
            row.copy_(state.time_shift[n_layer, 0])


def set_embedding(model: NativeModel, checkpoint: StoredCheckpoint) -> int:
    """Copies the rows as they are stored: they are looked up while the model lives, and the file
    may change meanwhile. Returns their size.
    """
    info = checkpoint.tensors["emb.weight"]
    packed = np.empty(info.nbytes, np.uint8)
    position = 0
    for _, part in checkpoint.row_slices("emb.weight"):
        packed[position : position + part.size] = part
        position += part.size
    model.set_embedding(LAYOUTS[info.type_name].type_id, packed)
    return info.nbytes


def _stored_name(name: str, n_layer: int) -> str:
    """Where a weight of the model with one layer more comes from."""
    prefix = f"blocks.{n_layer}."
    if not name.startswith(prefix):
        return name
    leaf = name.removeprefix(prefix)
    if leaf.startswith("ln1."):
        return f"ln_out.{leaf.removeprefix('ln1.')}"
    group, _, last = leaf.rpartition(".")
    if n_layer == 1 and group == "att":
        last = _STAND_INS.get(last, last)
    return f"blocks.{n_layer - 1}.{group}.{last}"
