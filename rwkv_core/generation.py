"""What a generation is asked for with, and what it answers: requests and events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

import numpy as np

from rwkv_core.cache.snapshot import SnapshotKind
from rwkv_core.cache.tokens import TokenIds
from rwkv_core.constraint import TokenConstraint
from rwkv_core.errors import AnserError, OptionError
from rwkv_core.logprobs import TokenLogprob
from rwkv_core.sampler import SamplingOptions

if TYPE_CHECKING:
    from rwkv_core.embedding import EmbeddedEvent

log = logging.getLogger(__name__)


class CutPoint(NamedTuple):
    """Where a prompt is to leave a snapshot: after its first `num_tokens` tokens."""

    num_tokens: int
    kind: SnapshotKind


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What to generate after a prompt; without a limit when `max_new_tokens` is None.

    A long prompt's tokens are better an array than a tuple: see `as_tokens`.

    `snapshot_at` names the places in the prompt from which other prompts may go on, in any order.
    They change what later requests cost, never a text. States are shared within `cache_scope` only,
    which is "" for all that were computed here. Drafts, of at most `max_draft_tokens` that are
    guessed and verified at once (0: none), change no text either; but see `Engine` on PyTorch.

    A `constraint` belongs to the request. With `num_top_logprobs` the events tell how likely each
    token was, and so many others in its place (0: none of them; None: no such thing).
    """

    prompt_token_ids: TokenIds
    sampling: SamplingOptions
    max_new_tokens: int | None
    stops: tuple[str, ...]
    snapshot_at: tuple[CutPoint, ...] = ()
    cache_scope: str = ""
    max_draft_tokens: int = 0
    constraint: TokenConstraint | None = None
    num_top_logprobs: int | None = None


class FinishReason(Enum):
    STOP = "stop"  # the model ended the text, or a stop string did
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class GenerationStats:
    """Tokens and times of one request; it has none before its turn has come.

    `num_cached_tokens` of the prompt were not read, as a state behind them was there already.
    `num_generated_tokens` counts every sampled token, those of a stop too. Of `num_draft_tokens`
    that were guessed, the `num_accepted_tokens` were right: so many tokens came without a pass of
    their own.
    """

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


@dataclass(frozen=True)
class TextEvent:
    """Whole characters, never empty, and the tokens sampled since the event before.

    `logprobs` are of the tokens that some of the text so far is of, each in one event.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class FinishedEvent:
    """The last event. `token_ids` are all that were sampled, also those of a stop.

    `logprobs` are of last tokens that have no text; those of a stop and the end of text have none.
    `stop` is the stop string that ended the text, "" if none did.
    """

    reason: FinishReason
    stats: GenerationStats
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    stop: str = ""


@dataclass(frozen=True)
class FailedEvent:
    """The last event of a request that could not be finished."""

    error: AnserError


Event: TypeAlias = Union[TextEvent, FinishedEvent, FailedEvent, "EmbeddedEvent"]
Sink: TypeAlias = Callable[[Event], None]


class Generation:
    """A request that an engine has taken. Its sink gets text, and a last event that says why."""

    def __init__(self, sink: Sink, withdraw: Callable[[Generation], bool]) -> None:
        """`withdraw` takes it out of the engine's queue; False when it is not in there."""
        self._sink: Sink | None = sink
        self._withdraw = withdraw
        self._is_cancelled = False

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def cancel(self) -> None:
        """Ends the request with the pass that the model is in; at once if it waits for a slot.

        Never blocks for long. No effect on a finished one.
        """
        self._is_cancelled = True
        if self._withdraw(self):
            self.deliver(FinishedEvent(FinishReason.CANCELLED, GenerationStats()))

    def deliver(self, event: Event) -> None:
        """Hands an event to the sink. If that fails nobody listens: cancels the request."""
        if self._sink is None:
            return
        try:
            self._sink(event)
        except Exception:
            log.exception("the receiver of a generation failed; the generation is cancelled")
            self._sink, self._is_cancelled = None, True


def check_request(request: GenerationRequest, vocab_size: int) -> None:
    """Raises OptionError for a request that the model cannot run."""
    check_tokens(request.prompt_token_ids, vocab_size)
    if request.max_new_tokens is not None and request.max_new_tokens < 1:
        raise OptionError(f"max_new_tokens must be at least 1, not {request.max_new_tokens}")
    if request.max_draft_tokens < 0:
        raise OptionError(f"max_draft_tokens must be at least 0, not {request.max_draft_tokens}")


def check_tokens(token_ids: TokenIds, vocab_size: int) -> None:
    """Raises OptionError for a text that the model cannot read."""
    ids = np.asarray(token_ids)
    if not len(ids):
        raise OptionError("the prompt is empty; it needs at least one token")
    least, greatest = int(ids.min()), int(ids.max())
    if not 0 <= least <= greatest < vocab_size:
        wrong = least if least < 0 else greatest
        raise OptionError(
            f"the prompt has the token id {wrong}; this model's are 0 to {vocab_size - 1}"
        )
