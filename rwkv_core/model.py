"""A loaded model: what the engine, the demo's tools and the benchmarks run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rwkv_core.checkpoint.architecture import tensor_shapes
from rwkv_core.config import ModelConfig
from rwkv_core.executor import Executor, Segment
from rwkv_core.state import State
from rwkv_core.tokenizer import Tokenizer


class Model:
    """A loaded RWKV-7 model. It holds no state: any number of states may be in use at once.

    Texts begin at the initial state, which is all zeros unless it was tuned.

    `advance` and `advance_batch` change the states they are given, which costs no copy; `forward`
    and `forward_batch` leave them as they were and return new ones. All raise ValueError on no
    tokens, an id outside the vocabulary, or states that do not fit.
    """

    def __init__(
        self,
        config: ModelConfig,
        executor: Executor,
        tokenizer: Tokenizer,
        *,
        metadata: Mapping[str, Any] | None = None,
        initial_state: State | None = None,
    ) -> None:
        """`initial_state` of batch size 1 is taken over; None is the usual one, all zeros."""
        self.config = config
        self.executor = executor
        self.tokenizer = tokenizer
        self.metadata: Mapping[str, Any] = metadata or {}
        self.initial_state = initial_state

    @property
    def device(self) -> torch.device:
        """Where states and logits are."""
        return self.executor.device

    @property
    def num_weight_bytes(self) -> int:
        """Memory that the weights take."""
        return self.executor.num_weight_bytes

    @property
    def num_parameters(self) -> int:
        """Weights in all; layer 0's unused value residual is not there to be counted."""
        return sum(math.prod(shape) for shape in tensor_shapes(self.config).values())

    def with_initial_state(self, initial_state: State | None) -> Model:
        """A model of the same weights, which are not copied, whose texts begin at another state."""
        if initial_state is not None:
            initial_state = initial_state.to(self.device)
        return Model(
            self.config,
            self.executor,
            self.tokenizer,
            metadata=self.metadata,
            initial_state=initial_state,
        )

    def new_state(self, batch_size: int = 1) -> State:
        """The state at the beginning of texts, for the caller to change."""
        if self.initial_state is None:
            return State.zeros(self.config, batch_size, self.device)
        return State.cat([self.initial_state] * batch_size)

    def advance(
        self, tokens: Sequence[int] | Tensor, state: State, *, all_logits: bool = False
    ) -> Tensor:
        """Reads `tokens` after `state`, which becomes the state after them.

        Returns float32 logits [vocab] of the last token, or [T, vocab] with `all_logits`.
        """
        segment = Segment(torch.as_tensor(tokens, dtype=torch.long), state)
        logits = self.advance_batch((segment,), all_logits=all_logits)
        return logits if all_logits else logits[0]

    @torch.inference_mode()
    def advance_batch(self, segments: Sequence[Segment], *, all_logits: bool = False) -> Tensor:
        """`advance` for several texts, of any mix of lengths, in as few passes as they fit.

        Returns float32 logits [sum of num_logits, vocab] in the order of the segments, where
        `all_logits` means those of all tokens whatever the segments say. After an exception the
        states are worthless, unless it was ValueError.
        """
        if all_logits:
            segments = [replace(each, num_logits=len(each.token_ids)) for each in segments]
        self._check(segments)
        return self.executor.advance(segments)

    @torch.inference_mode()
    def final_hidden(self, token_ids: Sequence[int], states: Sequence[State]) -> Tensor:
        """The residual stream behind `ln_out`, which the head reads, of one more token of each
        text: float32 [S, D] on the CPU. Leaves the states, of batch size 1, as they are.
        """
        tokens = [torch.tensor([token_id]) for token_id in token_ids]
        pairs = zip(tokens, states, strict=True)
        self._check([Segment(token, state, num_logits=0) for token, state in pairs])
        return self.executor.final_hidden(token_ids, states)

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Tensor, State]:
        """`advance` from a copy of `state` (None: the start of a text) -> logits, new state."""
        state = state.clone() if state else self.new_state()
        return self.advance(tokens, state, all_logits=all_logits), state

    @torch.inference_mode()
    def forward_batch(
        self, tokens: Tensor, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Tensor, State]:
        """`forward` for B sequences of equal length: ids [B, T] -> logits [B, vocab] or [B, T,
        vocab].
        """
        if tokens.ndim != 2 or tokens.shape[0] == 0:
            raise ValueError("a batch is token ids [B, T] with at least one sequence")
        state = state.clone() if state else self.new_state(tokens.shape[0])
        if state.batch_size != tokens.shape[0]:
            raise ValueError(f"a state of {state.batch_size} for {tokens.shape[0]} sequences")
        segments = [Segment(*pair) for pair in zip(tokens.cpu(), state.split(), strict=True)]
        logits = self.advance_batch(segments, all_logits=all_logits)
        return logits.view(*tokens.shape, -1) if all_logits else logits, state

    def _check(self, segments: Sequence[Segment]) -> None:
        """Native code is given addresses: what is not of this model must not get there."""
        if not segments:
            raise ValueError("a model reads at least one token at a time")
        config = self.config
        sizes = (config.n_layer, 1, config.n_embd, config.n_head, config.head_size)
        for segment in segments:
            ids = segment.token_ids
            if ids.ndim != 1 or not ids.shape[0]:
                raise ValueError("a model reads at least one token at a time")
            if not 0 <= segment.num_logits <= ids.shape[0]:
                raise ValueError("a segment has logits of no more tokens than it reads")
            low, high = ids.aminmax() if ids.shape[0] > 1 else (ids, ids)
            if not 0 <= int(low) <= int(high) < config.vocab_size:
                raise ValueError(f"token ids must be between 0 and {config.vocab_size - 1}")
            if segment.state.sizes != sizes:
                raise ValueError("a state is one sequence of this model")
        if len({segment.state.wkv.data_ptr() for segment in segments}) != len(segments):
            raise ValueError("a state cannot read two texts at once")
