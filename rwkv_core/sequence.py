"""One request on its way: its prompt, its state, the tokens and the text of its reply."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rwkv_core.cache import Snapshot, SnapshotKind, TokenArray, as_tokens
from rwkv_core.executor import Segment
from rwkv_core.generation import (
    CutPoint,
    FinishedEvent,
    FinishReason,
    Generation,
    GenerationRequest,
    GenerationStats,
    TextEvent,
)
from rwkv_core.model import Model
from rwkv_core.reading import Reading, checkpoints
from rwkv_core.rollback import Rollback
from rwkv_core.sampler import Sampler
from rwkv_core.state import State
from rwkv_core.stops import StopMatcher
from rwkv_core.tokenizer import IncrementalDecoder


@dataclass(frozen=True)
class ReplyEnd:
    """The end of a finished reply, without a stop."""

    tokens: TokenArray  # of prompt and reply
    snapshot: Snapshot  # behind `tokens`
    all_tokens: TokenArray  # up to where the stop begins: `tokens`, or a few more


class Sequence:
    """A request in the engine: it reads what it knows (its prompt), then writes token by token.

    Before that it may wait for a `leader`, which is reading the same text. Used by one thread, once
    it has a slot.
    """

    def __init__(self, model: Model, generation: Generation) -> None:
        request = generation.request
        self.generation = generation
        self._model = model
        self._request = request
        self._prompt = as_tokens(request.prompt_token_ids)
        self.reading = Reading(self._prompt, _cuts(request))
        self.leader: Sequence | None = None
        self.num_shared = 0  # tokens that the leader will have read when this one can go on
        self.is_suspect = False
        self._num_cached: int | None = None
        self._sampler: Sampler | None = None  # it may be large, so not while in the queue
        self._decoder = IncrementalDecoder(model.tokenizer)
        self._stops = StopMatcher(request.stops)
        self._rollback = Rollback()
        self._token_ids: list[int] = []  # of the reply
        self._has_pending = False  # whether the last of them is still to be read
        self._logits: Tensor | None = None  # [V] that it was drawn from
        self._num_sent_tokens = 0
        self._num_chars = self._num_safe_chars = 0  # decoded, and known to be no stop
        self._start_ns: int | None = None
        self._prefill_end_ns: int | None = None

    def take_slot(self) -> None:
        """Its time begins: what it spent in the queue is not the model's."""
        self._start_ns = time.monotonic_ns()
        self._sampler = Sampler(
            self._request.sampling,
            self._model.config.vocab_size,
            self._prompt,
            token_bytes=self._model.tokenizer.token_bytes,
        )

    @property
    def cache_scope(self) -> str:
        """Whose states it may go on from, and whose its own are."""
        return self._request.cache_scope

    @property
    def num_pending(self) -> int:
        """See `Schedulable`."""
        if self.leader is not None:
            return 0
        return 1 if self._has_pending else self.reading.num_to_cut

    @property
    def num_left(self) -> int:
        """See `Schedulable`."""
        return 1 if self._has_pending else self.reading.num_left

    @property
    def is_writing(self) -> bool:
        """See `Schedulable`."""
        return self._has_pending

    @property
    def is_ready(self) -> bool:
        """Whether everything known has been read, so that the next token can be drawn."""
        return not self._has_pending and self.reading.num_left <= 0

    def known_tokens(self) -> TokenArray:
        """Prompt and reply, the last token that is still to be read included."""
        reply = np.array(self._token_ids, np.int32)
        return np.concatenate((self._prompt, reply)) if len(reply) else self._prompt

    def follow(self, leader: Sequence, num_shared: int) -> None:
        """Waits until `leader` has read the first `num_shared` tokens, which are the same."""
        leader.reading.add_cut(CutPoint(num_shared, SnapshotKind.CHECKPOINT))
        self.leader, self.num_shared = leader, num_shared

    def start(self, state: State, num_read: int) -> None:
        """Reads on from a state behind the first tokens; takes it over."""
        self.leader = None
        if self._num_cached is None:
            self._num_cached = num_read
        self.reading.start(state, num_read)

    def forget_state(self) -> None:
        """The state is lost: everything known has to be read again, from where `start` says."""
        self.reading = Reading(self.known_tokens(), () if self._token_ids else _cuts(self._request))
        self._has_pending = False
        self._logits = None

    def segment(self, num_tokens: int) -> Segment:
        """What to read next, at most `num_pending` tokens."""
        if not self._has_pending:
            return self.reading.segment(num_tokens)
        assert self.reading.state is not None
        return Segment(torch.tensor(self._token_ids[-1:], dtype=torch.int32), self.reading.state)

    def has_read(self, num_tokens: int) -> None:
        """A pass has read that segment."""
        self.reading.has_read(num_tokens)
        self._has_pending = False

    def write(self, logits: Tensor) -> FinishReason | None:
        """Draws the next token, everything known having been read, and sends what it completes.

        Returns why the reply has ended with it, if it has. Raises GenerationError for logits that
        are not numbers.
        """
        if self._prefill_end_ns is None:
            self._prefill_end_ns = time.monotonic_ns()
        assert self._sampler is not None
        self._logits = logits
        token_id = self._sampler.sample(logits)
        self._sampler.accept(token_id)
        num_read = self.reading.num_read
        self._rollback.begin_token(num_read, self._num_chars, is_whole=self._decoder.is_whole)
        self._token_ids.append(token_id)
        self._has_pending = True
        self._push(self._decoder.push(token_id))
        if self._stops.matched is not None:
            return FinishReason.STOP
        if token_id in self._model.tokenizer.eos_token_ids:
            self._flush()
            return FinishReason.STOP
        if len(self._token_ids) == self._request.max_new_tokens:
            self._flush()
            return FinishReason.LENGTH if self._stops.matched is None else FinishReason.STOP
        assert self.reading.state is not None
        self._rollback.keep(num_read, self.reading.state, logits)
        return None

    def finished(self, reason: FinishReason) -> FinishedEvent:
        return FinishedEvent(reason, self._stats(), tuple(self._token_ids))

    def end_of_reply(self) -> ReplyEnd | None:
        """The last state that holds nothing of a stop; None for a reply that has not begun."""
        state, logits, num_tokens = self.reading.state, self._logits, self.reading.num_read
        if state is None or logits is None:
            return None
        end = num_tokens
        if self._stops.matched is not None:
            end = self._rollback.target(num_tokens)
            point = self._rollback.point
            if end < num_tokens and point is not None:
                state, logits, num_tokens = point.state, point.logits, point.num_tokens
        tokens = self.known_tokens()
        return ReplyEnd(tokens[:num_tokens], Snapshot.of(state, logits), tokens[:end])

    def _push(self, text: str) -> None:
        self._num_chars += len(text)
        self._send(self._stops.push(text))
        is_all_safe = self._num_safe_chars == self._num_chars and self._decoder.is_whole
        self._rollback.end_token(self._num_safe_chars, is_all_safe=is_all_safe)

    def _flush(self) -> None:
        """What was held back: it has become text, as nothing follows that would make it a stop."""
        rest = self._decoder.flush()
        self._num_chars += len(rest)
        self._send(self._stops.push(rest) + self._stops.flush())
        self._rollback.end_token(self._num_safe_chars, is_all_safe=self._stops.matched is None)

    def _send(self, text: str) -> None:
        if text:
            self._num_safe_chars += len(text)
            token_ids = tuple(self._token_ids[self._num_sent_tokens :])
            self._num_sent_tokens = len(self._token_ids)
            self.generation.deliver(TextEvent(text, token_ids))

    def _stats(self) -> GenerationStats:
        if self._start_ns is None:
            return GenerationStats()
        now = time.monotonic_ns()
        prefill_end = self._prefill_end_ns or now
        return GenerationStats(
            num_prompt_tokens=len(self._prompt),
            num_cached_tokens=self._num_cached or 0,
            num_generated_tokens=len(self._token_ids),
            prefill_ns=prefill_end - self._start_ns,
            decode_ns=now - prefill_end,
        )


def _cuts(request: GenerationRequest) -> Iterator[CutPoint]:
    num_tokens = len(request.prompt_token_ids)
    yield from checkpoints(num_tokens)
    yield from request.snapshot_at
    yield CutPoint(num_tokens, SnapshotKind.PROMPT_END)
