"""Runs a model in PyTorch: on CUDA, on a CPU without kernels, and as the kernels' reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_core.checkpoint.base import PLAIN_TYPES
from rwkv_core.config import ModelConfig
from rwkv_core.executor import Segment
from rwkv_core.formulas import Weights, forward_hidden, linear
from rwkv_core.state import State
from rwkv_core.wkv import CHUNK

# Rows (tokens of all sequences) that are projected at once: enough to fill the matrix units, and a
# bound on memory.
PREFILL_CHUNK = 512

_TYPE_NAMES = {dtype: type_name for type_name, dtype in PLAIN_TYPES.items()}


class TorchExecutor:
    """`formulas.forward_hidden` in chunks. Segments of equal length run as one batch."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.weights = weights
        self._config = config

    @property
    def device(self) -> torch.device:
        return self.weights.emb.device

    @property
    def type_name(self) -> str:
        return _TYPE_NAMES[self.weights.emb.dtype]

    @property
    def num_weight_bytes(self) -> int:
        return self.weights.nbytes

    @property
    def description(self) -> str:
        return f"{self.type_name} in PyTorch"

    def advance(self, segments: Sequence[Segment]) -> Tensor:
        """See `Executor`."""
        alike: dict[tuple[int, int], list[int]] = {}
        for index, segment in enumerate(segments):
            key = (segment.token_ids.shape[0], segment.num_logits)
            alike.setdefault(key, []).append(index)
        logits: dict[int, Tensor] = {}  # [num_logits, V] by segment
        for indices in alike.values():
            batch = self._advance_batch([segments[index] for index in indices])
            logits.update(zip(indices, batch.unbind(), strict=True))
        in_order = [logits[index] for index in range(len(segments))]
        return in_order[0] if len(in_order) == 1 else torch.cat(in_order)

    def final_hidden(self, token_ids: Sequence[int], states: Sequence[State]) -> Tensor:
        """See `Executor`."""
        tokens = torch.tensor(token_ids, dtype=torch.long, device=self.device).unsqueeze(1)
        hidden, _ = forward_hidden(self.weights, self._config, tokens, State.cat(states))
        return hidden[:, 0].cpu()

    def _advance_batch(self, segments: list[Segment]) -> Tensor:
        """Segments of equal length and `num_logits` -> logits [B, num_logits, V]."""
        tokens = torch.stack([segment.token_ids for segment in segments])
        tokens = tokens.to(self.device, torch.long)
        state = segments[0].state
        if len(segments) > 1:
            state = State.cat([segment.state for segment in segments])
        first_wanted = tokens.shape[1] - segments[0].num_logits
        collected = []
        position = 0
        # The recurrence works in chunks of its own, which shorter ones would leave half empty.
        chunk_length = max(CHUNK, PREFILL_CHUNK // len(segments))
        for chunk in torch.split(tokens, chunk_length, dim=1):
            hidden, state = forward_hidden(self.weights, self._config, chunk, state)
            wanted = hidden[:, max(first_wanted - position, 0) :]
            position += chunk.shape[1]
            if wanted.shape[1]:
                collected.append(linear(wanted, self.weights.head))
        for segment, after in zip(segments, state.split(), strict=True):
            segment.state.copy_(after)
        if not collected:
            return hidden.new_empty((len(segments), 0, self._config.vocab_size))
        return collected[0] if len(collected) == 1 else torch.cat(collected, 1)
