"""Embeddings: a text as one vector, the final hidden state of its last token.

That state, behind `ln_out`, is what the head reads to say what comes next, so it sums up what came
before; llama.cpp takes the same one for models that have no pooling of their own. A mean over the
tokens would mix in states that know only the beginning of the text.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rwkv_core.cache import TokenIds, as_tokens
from rwkv_core.executor import Segment
from rwkv_core.generation import FinishedEvent, FinishReason, Generation, GenerationStats
from rwkv_core.reading import Reading
from rwkv_core.state import State


@dataclass(frozen=True, eq=False)
class EmbeddingRequest:
    """A text to be read."""

    token_ids: TokenIds


@dataclass(frozen=True, eq=False)
class EmbeddedEvent:
    """The last event of an EmbeddingRequest: its vector [D], float32, not normalised."""

    vector: Tensor
    num_tokens: int


class EmbeddingSequence:
    """An EmbeddingRequest in the engine: reads all but the last token like a prompt, and leaves no
    snapshots. Used by one thread, once it has a slot.
    """

    is_writing = False
    cache_scope = ""
    leader = None

    def __init__(self, generation: Generation, request: EmbeddingRequest) -> None:
        self.generation = generation
        self.is_suspect = False
        self._tokens = as_tokens(request.token_ids)
        self.reading = Reading(self._tokens[:-1])

    @property
    def num_pending(self) -> int:
        """See `Schedulable`."""
        return self.reading.num_to_cut

    @property
    def num_left(self) -> int:
        """See `Schedulable`."""
        return self.reading.num_left

    def draft(self, row_cost: float) -> None:
        """See `Schedulable`: never called, as it writes nothing."""

    @property
    def is_ready(self) -> bool:
        """Whether only the last token is left."""
        return self.reading.state is not None and self.reading.num_left <= 0

    @property
    def last_token(self) -> int:
        return int(self._tokens[-1])

    def start(self, state: State) -> None:
        """From the beginning of the text; takes the state over."""
        self.reading = Reading(self._tokens[:-1])
        self.reading.start(state, 0)

    def segments(self, num_rows: int) -> list[Segment]:
        """What to read next; nobody wants logits of it."""
        segment = self.reading.segment(num_rows)
        return [Segment(segment.token_ids, segment.state, num_logits=0)]

    def has_read(self, num_rows: int) -> None:
        """A pass has read these segments."""
        self.reading.has_read(num_rows)

    def cancelled(self) -> FinishedEvent:
        return FinishedEvent(FinishReason.CANCELLED, GenerationStats())

    def embedded(self, vector: Tensor) -> EmbeddedEvent:
        self.is_suspect = False
        return EmbeddedEvent(vector.clone(), len(self._tokens))
