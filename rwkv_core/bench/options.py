"""What to measure. Plain values, so that they travel to the measuring process as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_core.errors import AnserError

DEFAULT_PROMPT_TOKENS = 512
DEFAULT_DECODE_TOKENS = 64
DEFAULT_REPETITIONS = 3

# Where `SpeedOptions.num_long_tokens` measures for the first time.
SHORT_TEXT_TOKENS = 100


class BenchError(AnserError):
    """A measurement that cannot be made."""


@dataclass(frozen=True)
class Runtime:
    """How the measuring process computes; None leaves it to the engine."""

    num_threads: int | None = None
    isa: str | None = None  # caps the instruction set: one of INSTRUCTION_SETS


@dataclass(frozen=True)
class SpeedOptions:
    """Counts, all at least 1.

    With `num_long_tokens`, more than SHORT_TEXT_TOKENS, decoding is measured after that many tokens
    too; with `batch_size`, for so many sequences at once.
    """

    num_prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    num_decode_tokens: int = DEFAULT_DECODE_TOKENS
    num_repetitions: int = DEFAULT_REPETITIONS
    batch_size: int | None = None
    num_long_tokens: int | None = None


@dataclass(frozen=True)
class QualityOptions:
    """Paths of the text to read (None: a built-in one) and of the model to compare with in float32
    (None: the measured one itself).
    """

    text: str | None = None
    reference: str | None = None
    num_dialogues: int = 64  # of the built-in text of the demo model
    num_prompts: int = 100  # of the demo model; other models get `texts.NUM_EXCERPTS`
