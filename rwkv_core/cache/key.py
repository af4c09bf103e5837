"""Which states belong to a model: those that it would compute itself, to the bit."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from functools import cached_property
from hashlib import sha256

import torch

from rwkv_core import kernels
from rwkv_core.executor import NUM_TORCH_THREADS, Executor
from rwkv_core.kernel_executor import KernelExecutor
from rwkv_core.state import State
from rwkv_core.tokenizer import Tokenizer

# Goes up when a snapshot means something else than before: older ones are then not found.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Numerics:
    """What the last bits of a state depend on, beside the weights and the tokens."""

    executor: str  # "kernels" or "torch"
    instruction_set: str
    type_name: str  # of most weights: "Q8_0"
    version: str  # of the code that computes

    @classmethod
    def of(cls, executor: Executor) -> Numerics:
        """What an executor computes with at this moment."""
        if isinstance(executor, KernelExecutor):
            extension = kernels.native()
            assert extension is not None  # it runs this executor
            return cls("kernels", extension.isa(), executor.type_name, extension.SOURCE_HASH)
        if executor.device.type == "cuda":
            processor = torch.cuda.get_device_name(executor.device)
        else:
            # Sums are dealt out to threads, so that their rounding depends on how many there are.
            capability = torch.backends.cpu.get_cpu_capability()
            processor = f"{capability} on {NUM_TORCH_THREADS} threads"
        return cls("torch", processor, executor.type_name, torch.__version__)


@dataclass(frozen=True)
class ModelKey:
    """Whose states they are. Two models with equal keys give equal bits for equal tokens.

    `model` and `numerics` are hexadecimal SHA-256: the first of weights, tokenizer and initial
    state, the second of what computes.
    """

    model: str
    numerics: str

    @classmethod
    def of(
        cls,
        weights_digest: str,
        tokenizer: Tokenizer,
        initial_state: State | None,
        numerics: Numerics,
    ) -> ModelKey:
        """`weights_digest` is the SHA-256 of the model's file as text; None as `initial_state` is
        the usual one, all zeros.
        """
        initial = None if initial_state is None else state_digest(initial_state)
        return cls(
            _digest(weights_digest, tokenizer_digest(tokenizer), initial),
            _digest(*astuple(numerics)),
        )

    @cached_property
    def hex(self) -> str:
        """The whole key: 64 digits."""
        return _digest(FORMAT_VERSION, self.model, self.numerics)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Hexadecimal SHA-256 of what every id stands for, and which of them end a text."""
    hasher = sha256(json.dumps([tokenizer.vocab_size, sorted(tokenizer.eos_token_ids)]).encode())
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(token_id)
        hasher.update(len(token).to_bytes(4, "little") + token)
    return hasher.hexdigest()


def state_digest(state: State) -> str:
    """Hexadecimal SHA-256 of the sizes and values of a state."""
    hasher = sha256()
    for part in (state.time_shift, state.channel_shift, state.wkv):
        hasher.update(json.dumps([*part.shape]).encode())
        hasher.update(part.detach().cpu().contiguous().numpy().data)
    return hasher.hexdigest()


def _digest(*parts: str | int | None) -> str:
    """JSON keeps the parts apart, whatever is in them."""
    return sha256(json.dumps(parts).encode()).hexdigest()
