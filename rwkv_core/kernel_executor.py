"""Runs a model with the CPU kernels, on weights as packed as the file has them.

Their numbers depend neither on where a text is cut into passes nor on what shares a pass: every
output is the same sequence of operations whatever the number of rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rwkv_core import kernels
from rwkv_core.checkpoint import StoredCheckpoint
from rwkv_core.checkpoint.architecture import required_names
from rwkv_core.checkpoint.base import main_type, output_major_shape
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.config import ModelConfig
from rwkv_core.executor import Segment
from rwkv_core.formulas import is_matrix
from rwkv_core.kernels.interface import Int32s, Native, NativeMatrix, NativeModel
from rwkv_core.state import State

# The value matrix of a layer's channel mix: only its inputs are ever exactly zero.
FFN_VALUE = "blocks.{layer}.ffn.value.weight"

# Final hidden states are made of copies of so many states at a time.
_TEXTS_OF_A_PASS = 8

_HEAD_SIZES = (16, 32, 64, 128)


def can_run(config: ModelConfig) -> bool:
    """Whether the kernels are made for these sizes: those of all released models, and smaller."""
    return config.n_embd % 64 == 0 and config.n_ffn % 32 == 0 and config.head_size in _HEAD_SIZES


class KernelExecutor:
    """A model's weights in the kernels' memory."""

    def __init__(
        self,
        native: Native,
        model: NativeModel,
        config: ModelConfig,
        *,
        type_name: str,
        num_weight_bytes: int,
    ) -> None:
        self.device = torch.device("cpu")
        self.type_name = type_name
        self.num_weight_bytes = num_weight_bytes
        self._native = native
        self._model = model
        self._n_layer = config.n_layer
        self._vocab_size = config.vocab_size
        self._by_columns: set[int] = set()  # layers that skip zero channels
        self._width = config.n_embd

    @classmethod
    def load(
        cls, native: Native, config: ModelConfig, checkpoint: StoredCheckpoint
    ) -> KernelExecutor:
        """Packs the checkpoint's tensors one after the other, in their own types.

        Holds a slice of the file beside the weights, and of the embedding, which comes first, two
        copies. Nothing of the file is used afterwards. Raises CheckpointError or MemoryError.
        """
        model = native.Model(
            config.n_layer,
            config.n_embd,
            config.head_size,
            config.n_ffn,
            config.vocab_size,
            config.layer_norm_eps,
            config.group_norm_eps,
        )
        num_bytes = 0
        for name in required_names(config.n_layer):
            if name == "emb.weight":
                num_bytes += _set_embedding(model, checkpoint, name)
            elif is_matrix(name):
                matrix = _matrix(checkpoint, name)
                model.set_matrix(name, matrix)
                num_bytes += matrix.nbytes
            else:
                values = checkpoint.read(name).to(torch.float32).reshape(-1)
                model.set_vector(name, values.numpy())
                num_bytes += values.nbytes
        model.finish()
        return cls(
            native,
            model,
            config,
            type_name=main_type(checkpoint),
            num_weight_bytes=num_bytes,
        )

    @property
    def description(self) -> str:
        threads = self._native.num_threads()
        kernels_used = f"{self.type_name}, {self._native.isa()} kernels on {threads} threads"
        if not self._by_columns:
            return kernels_used
        count = f"{len(self._by_columns)} of {self._n_layer}"
        return f"{kernels_used}, zero channels skipped in {count} layers"

    @property
    def layers_by_columns(self) -> frozenset[int]:
        """The layers that skip zero channels."""
        return frozenset(self._by_columns)

    def advance(self, segments: Sequence[Segment]) -> Tensor:
        """See `Executor`."""
        lengths = [segment.token_ids.shape[0] for segment in segments]
        out = torch.empty(sum(segment.num_logits for segment in segments), self._vocab_size)
        num_logits = 0
        for runs in plan_passes(lengths, self._native.max_rows()):
            tokens = [segments[run.segment].token_ids.numpy()[run.start : run.end] for run in runs]
            starts = list(itertools.accumulate((len(each) for each in tokens), initial=0))
            rows = _logits_rows(segments, runs)
            kernels.forward(
                self._model,
                np.concatenate(tokens, dtype=np.int32, casting="same_kind"),
                np.array(starts, np.int32),
                [segments[run.segment].state for run in runs],
                rows,
                out[num_logits : num_logits + len(rows)],
            )
            num_logits += len(rows)
        return out

    def pack_by_columns(self, checkpoint: StoredCheckpoint, layer: int) -> None:
        """Reads a layer's value matrix once more, so that it skips zero channels from now on.

        No number changes. Holds both layouts of that one matrix, and a slice of the file. Raises
        CheckpointError or MemoryError, and changes nothing then.
        """
        name = FFN_VALUE.format(layer=layer)
        matrix = _matrix(checkpoint, name, by_columns=True)
        self._model.replace_matrix(name, matrix)
        self._by_columns.add(layer)

    def final_hidden(self, token_ids: Sequence[int], states: Sequence[State]) -> Tensor:
        """See `Executor`."""
        found = torch.empty(len(states), self._width)
        for first in range(0, len(states), _TEXTS_OF_A_PASS):
            part = slice(first, first + _TEXTS_OF_A_PASS)
            copies = [state.clone() for state in states[part]]
            rows = np.arange(len(copies) + 1, dtype=np.int32)
            tokens = np.array(token_ids[part], np.int32)
            kernels.forward(
                self._model, tokens, rows, copies, rows[:-1].copy(), found[part], hidden=True
            )
        return found

    def zero_channels(self) -> tuple[int, int]:
        """How many hidden channels of the channel mixes were zero, of how many, since the reset."""
        zeros, num_channels = self._model.zero_channels()
        return sum(zeros), num_channels * len(zeros)

    def active_shares(self) -> list[float]:
        """The share of each layer's hidden channels that were not zero, over all rows of all passes
        since the reset; there must have been one.
        """
        zeros, num_channels = self._model.zero_channels()
        return [1 - num_zeros / num_channels for num_zeros in zeros]

    def reset_counters(self) -> None:
        self._model.reset_counters()


@dataclass(frozen=True)
class Run:
    """The part of a segment that one pass reads: its tokens from `start` to `end`."""

    segment: int
    start: int
    end: int


def plan_passes(lengths: Sequence[int], max_rows: int) -> Iterator[list[Run]]:
    """Deals segments of these lengths out to passes of at most `max_rows` tokens, in order.

    Passes are full but for the last; a segment goes on in the next where it does not fit.
    """
    runs: list[Run] = []
    free = max_rows
    for segment, length in enumerate(lengths):
        start = 0
        while start < length:
            end = min(length, start + free)
            runs.append(Run(segment, start, end))
            free -= end - start
            start = end
            if not free:
                yield runs
                runs, free = [], max_rows
    if runs:
        yield runs


def _logits_rows(segments: Sequence[Segment], runs: Sequence[Run]) -> Int32s:
    """Which rows of a pass are among the tokens whose logits are wanted."""
    rows: list[int] = []
    end = 0
    for run in runs:
        end += run.end - run.start
        segment = segments[run.segment]
        num_behind = segment.token_ids.shape[0] - run.end  # tokens left to later passes
        num_wanted = min(segment.num_logits - num_behind, run.end - run.start)
        rows.extend(range(end - num_wanted, end))  # none where that is below 0
    return np.array(rows, np.int32)


def _set_embedding(model: NativeModel, checkpoint: StoredCheckpoint, name: str) -> int:
    """Its bytes, which are copied: the file may change while they are in use."""
    info = checkpoint.tensors[name]
    packed = np.empty(info.nbytes, np.uint8)
    position = 0
    for _, part in checkpoint.row_slices(name):
        packed[position : position + part.size] = part
        position += part.size
    model.set_embedding(LAYOUTS[info.type_name].type_id, packed)
    return info.nbytes


def _matrix(checkpoint: StoredCheckpoint, name: str, *, by_columns: bool = False) -> NativeMatrix:
    info = checkpoint.tensors[name]
    rows, cols = output_major_shape(info)
    is_value = name.endswith("ffn.value.weight")
    slices = kernels.num_slices(info.type_name, cols) if is_value else 1
    matrix = kernels.empty_matrix(info.type_name, rows, cols, by_columns=by_columns, slices=slices)
    for first_row, packed in checkpoint.row_slices(name, kernels.ROW_MULTIPLE):
        kernels.fill(matrix, info.type_name, first_row, packed)
    return matrix
