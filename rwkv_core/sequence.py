"""One request on its way: its prompt, its state, the tokens and the text of its reply."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from torch import Tensor

from rwkv_core.cache import SnapshotKind, TokenArray, as_tokens
from rwkv_core.drafts import Drafter
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
from rwkv_core.logprobs import LogprobQueue, token_logprob
from rwkv_core.model import Model
from rwkv_core.reading import Reading, checkpoints
from rwkv_core.rollback import Point, Rollback
from rwkv_core.sampler import Sampler
from rwkv_core.state import State
from rwkv_core.stops import StopMatcher
from rwkv_core.tail import Tail
from rwkv_core.tokenizer import IncrementalDecoder


@dataclass(frozen=True)
class ReplyEnd:
    """The end of a finished reply, without a stop."""

    tokens: TokenArray  # of prompt and reply
    point: Point  # behind the last of them, or a few before it; its state may be changed


class Sequence:
    """A request in the engine: it reads what it knows (its prompt), then writes token by token.

    Before that it may wait for a `leader`, which is reading the same text. Used by one thread, once
    it has a slot.
    """

    def __init__(self, model: Model, generation: Generation, request: GenerationRequest) -> None:
        self.generation = generation
        self._model = model
        self._request = request
        self._prompt = as_tokens(request.prompt_token_ids)
        self.reading = Reading(self._prompt, _cuts(request))
        self.leader: Sequence | None = None
        self.num_shared = 0  # tokens that the leader will have read when this one can go on
        self.is_suspect = False
        self._num_cached: int | None = None
        # They may be large, so not while in the queue.
        self._sampler: Sampler | None = None
        self._drafter: Drafter | None = None
        self._decoder = IncrementalDecoder(model.tokenizer)
        self._stops = StopMatcher(request.stops)
        self._rollback = Rollback()
        self._token_ids: list[int] = []  # of the reply
        self._tail = Tail()  # the last of them, which are still to be read
        self._points: tuple[Point, ...] = ()  # where there is a state since the last pass
        self._num_draft_tokens = self._num_accepted_tokens = 0
        self._num_sent_tokens = 0
        self._logprobs = LogprobQueue()
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
        if self._request.max_draft_tokens:
            self._drafter = Drafter(self._prompt, self._request.max_draft_tokens)

    @property
    def cache_scope(self) -> str:
        """Whose states it may go on from, and whose its own are."""
        return self._request.cache_scope

    @property
    def num_pending(self) -> int:
        """See `Schedulable`."""
        if self.leader is not None:
            return 0
        return self._tail.num_rows if self.is_writing else self.reading.num_to_cut

    @property
    def num_left(self) -> int:
        """See `Schedulable`."""
        return self._tail.num_rows if self.is_writing else self.reading.num_left

    @property
    def is_writing(self) -> bool:
        """See `Schedulable`."""
        return bool(self._tail.tokens)

    def draft(self, row_cost: float) -> None:
        """See `Schedulable`."""
        if self._drafter is None:
            return
        limit = self._request.max_new_tokens
        # Behind the last token of a draft one more is drawn.
        most = None if limit is None else limit - len(self._token_ids) - 1
        self._tail.draft = self._drafter.draft(len(self._tail.tokens), row_cost, most)

    @property
    def is_ready(self) -> bool:
        """Whether everything known has been read, so that the next token can be drawn."""
        return not self.is_writing and self.reading.num_left <= 0

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
        self._tail = Tail()
        self._points = ()

    def segments(self, num_rows: int) -> list[Segment]:
        """What to read next: at most `num_pending` rows of a prompt, all of them of a reply."""
        if not self.is_writing:
            return [self.reading.segment(num_rows)]
        assert self.reading.state is not None
        return self._tail.segments(self.reading.state)

    def has_read(self, num_rows: int) -> None:
        """A pass has read these segments."""
        self.reading.has_read(len(self._tail.tokens) if self.is_writing else num_rows)
        self._tail.tokens = []

    def write(self, logits: Tensor) -> FinishReason | None:
        """Draws the next tokens, everything known having been read, and sends what they complete.

        There is one token, and one more for each of the draft that was drawn as well, from `logits`
        [1 + draft, V]: those that would have been drawn one by one. Returns why the reply has ended
        with the last of them, if it has. Raises GenerationError for logits that are not numbers.
        """
        if self._prefill_end_ns is None:
            self._prefill_end_ns = time.monotonic_ns()
        assert self.reading.state is not None
        known = Point(self.reading.num_read, self.reading.state, logits[0])
        draft = self._tail.draft
        num_drawn, reason = 0, None
        for row, guess in zip_longest(logits, draft):
            reason = self._write_token(row)
            num_drawn += 1
            is_over = reason is not None or self.generation.is_cancelled
            if is_over or self._token_ids[-1] != guess:
                break
        self._num_draft_tokens += len(draft)
        self._num_accepted_tokens += num_drawn - 1
        self._points = self._tail.settle(known, self._token_ids[-num_drawn:], logits)
        self.reading.start(self._points[-1].state, self._points[-1].num_tokens)
        if reason is None:
            self._rollback.keep(*self._points)
        return reason

    def _write_token(self, logits: Tensor) -> FinishReason | None:
        """Draws one from logits [V]."""
        assert self._sampler is not None
        constraint = self._request.constraint
        token_id = self._sampler.sample(logits, constraint.mask() if constraint else None)
        is_end = token_id in self._model.tokenizer.eos_token_ids
        self._sampler.accept(token_id)
        if constraint is not None and not is_end:
            constraint.accept(token_id)
        self._note_logprob(logits, token_id)
        if self._drafter is not None:
            self._drafter.push(token_id)
        num_tokens = len(self._prompt) + len(self._token_ids)
        self._rollback.begin_token(num_tokens, self._num_chars, is_whole=self._decoder.is_whole)
        self._token_ids.append(token_id)
        self._push(self._decoder.push(token_id))
        if self._stops.matched is not None:
            return FinishReason.STOP
        if is_end or (constraint is not None and constraint.is_complete):
            self._flush()
            return FinishReason.STOP
        if len(self._token_ids) == self._request.max_new_tokens:
            self._flush()
            return FinishReason.LENGTH if self._stops.matched is None else FinishReason.STOP
        return None

    def finished(self, reason: FinishReason) -> FinishedEvent:
        stop = self._stops.matched or ""
        logprobs = () if stop else self._logprobs.take_all()
        return FinishedEvent(reason, self._stats(), tuple(self._token_ids), logprobs, stop)

    def end_of_reply(self) -> ReplyEnd | None:
        """Up to where the state holds nothing of a stop; None for a reply that has not begun."""
        if not self._points:
            return None
        tokens = self.known_tokens()[:-1]  # nobody has read the last one
        end = len(tokens)
        if self._stops.matched is not None:
            end = self._rollback.target(end)
        point = self._rollback.nearest(end, *self._points)
        assert point is not None
        return ReplyEnd(tokens[:end], point)

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
            logprobs = self._logprobs.take(self._num_safe_chars)
            self.generation.deliver(TextEvent(text, token_ids, logprobs))

    def _note_logprob(self, logits: Tensor, token_id: int) -> None:
        """Of the token that is drawn from logits [V], and not yet decoded; not the end of text."""
        tokenizer, num_top = self._model.tokenizer, self._request.num_top_logprobs
        if num_top is not None and token_id not in tokenizer.eos_token_ids:
            logprob = token_logprob(tokenizer, logits, token_id, num_top)
            self._logprobs.add(self._num_chars, logprob)

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
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=self._num_accepted_tokens,
        )


def _cuts(request: GenerationRequest) -> Iterator[CutPoint]:
    num_tokens = len(request.prompt_token_ids)
    yield from checkpoints(num_tokens)
    yield from request.snapshot_at
    yield CutPoint(num_tokens, SnapshotKind.PROMPT_END)
