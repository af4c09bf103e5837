"""How the tokens of a request are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rwkv_core.errors import OptionError

# Option -> least and greatest value. The bounds of the penalties keep float32 logits finite.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_k": (-1, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_last_n": (-1, math.inf),
    "repeat_penalty": (0.01, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "penalty_decay": (0, 1),
}


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn, with Ollama's names and defaults. Raises OptionError out of range.

    `temperature` 0 takes the likeliest token. `top_k` 0 or -1 and the value 1 of `top_p`,
    `typical_p` and `repeat_penalty` turn these off. `repeat_penalty` concerns the last
    `repeat_last_n` tokens of prompt and reply (-1: all of them), the presence and frequency
    penalties the tokens of the reply, of which each is forgotten by `penalty_decay` per token. A
    negative `seed` is a fresh one for each request.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 0.996
    seed: int = -1

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # not a number is never inside
                wanted = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise OptionError(f"option {name} must be {wanted}, not {value}")
