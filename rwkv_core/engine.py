"""Generation for many at once: one thread runs the model, a pass at a time, for all who want it.

Sequences join and leave between two passes. A text depends on its own request alone: with the CPU
kernels, bit for bit, whoever shares the passes, wherever its prompt was cut, whether its state
was computed or came out of the cache, and what drafts it had. In PyTorch the last bits of a number
depend on the cuts and the company, so that there a text may differ where two tokens were as good as
equally likely.

Rules for threads: `submit`, `read_ahead`, `cancel` and `close` may be called from any; a sink is
called from the engine's thread, and once from the caller of `cancel` or `close` when the request
was still waiting. It must not block.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor

from rwkv_core.cache import (
    Snapshot,
    SnapshotKind,
    StateCache,
    TokenArray,
    TokenIds,
    as_tokens,
)
from rwkv_core.embedding import EmbeddedEvent, EmbeddingRequest, EmbeddingSequence
from rwkv_core.errors import AnserError, EngineStoppedError, GenerationError
from rwkv_core.executor import NUM_TORCH_THREADS, Segment
from rwkv_core.generation import (
    CutPoint,
    Event,
    FailedEvent,
    FinishedEvent,
    FinishReason,
    Generation,
    GenerationRequest,
    GenerationStats,
    Sink,
    TextEvent,
    check_request,
    check_tokens,
)
from rwkv_core.kernel_executor import KernelExecutor
from rwkv_core.model import Model
from rwkv_core.read_ahead import ReadAhead
from rwkv_core.scheduler import Run, Scheduler
from rwkv_core.sequence import ReplyEnd, Sequence

__all__ = [
    "CutPoint",
    "EmbeddedEvent",
    "EmbeddingRequest",
    "Engine",
    "Event",
    "FailedEvent",
    "FinishReason",
    "FinishedEvent",
    "Generation",
    "GenerationRequest",
    "GenerationStats",
    "Sink",
    "TextEvent",
]

log = logging.getLogger(__name__)

DEFAULT_NUM_SLOTS = 8
DEFAULT_MAX_QUEUE = 512

# Rows of a pass: what one call of the kernels takes; on a GPU as many as lie between checkpoints,
# so that chunks end at cut points only.
_MAX_ROWS_CPU = 256
_MAX_ROWS_GPU = 1024

# Waiting for another prompt that begins alike is worth it for at least so many tokens.
_MIN_SHARED_TOKENS = 16
# How long streams may wait for new requests to be taken in: a state may come from disk.
_TAKING_S = 0.05
# Tokens at the end of a reply, of a draft or before a stop, that may be read again in one pass in
# which no stream has a part.
_MAX_END_ROWS = 64

_AnySequence: TypeAlias = Sequence | EmbeddingSequence

_STOPPED = "the model was unloaded before the reply was finished; send the request again"


@dataclass(frozen=True)
class EngineLoad:
    """What an engine has to do at this moment, and has done since it began."""

    num_slots: int
    num_running: int
    num_waiting: int
    num_ahead: int  # texts to be read when there is nothing else to do
    num_read_ahead: int  # texts that have been, or whose states were in the cache already
    is_idle: bool  # nothing to do, and nothing being done


class Engine:
    """Runs requests on `model`. `close` it: until then its thread keeps the model in memory."""

    def __init__(
        self,
        model: Model,
        *,
        cache: StateCache | None = None,
        num_slots: int = DEFAULT_NUM_SLOTS,
        max_queue: int = DEFAULT_MAX_QUEUE,
    ) -> None:
        """So many requests run at once and so many more wait. The cache stays the caller's."""
        self._model = model
        self._cache = cache
        max_rows = _MAX_ROWS_CPU if model.device.type == "cpu" else _MAX_ROWS_GPU
        self._ahead = ReadAhead(model, cache) if cache is not None else None
        self._changed = threading.Condition()  # guards the fields below
        self._scheduler: Scheduler[_AnySequence] = Scheduler(num_slots, max_queue, max_rows)
        self._is_working = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="anser-engine", daemon=True)
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether requests are taken: False once closed, or if the thread has died."""
        return self._thread.is_alive() and not self._is_closed

    @property
    def load(self) -> EngineLoad:
        with self._changed:
            return EngineLoad(
                num_slots=self._scheduler.num_slots,
                num_running=len(self._scheduler.running),
                num_waiting=self._scheduler.num_waiting,
                num_ahead=self._ahead.num_waiting if self._ahead else 0,
                num_read_ahead=self._ahead.num_done if self._ahead else 0,
                is_idle=not self._is_working and not self._has_work(),
            )

    def submit(self, request: GenerationRequest, sink: Sink) -> Generation:
        """Takes a request, to begin when a slot is free and all before it have begun.

        Raises OptionError for one that cannot be run, EngineBusyError when too many wait, and
        EngineStoppedError when the engine is not healthy.
        """
        check_request(request, self._model.config.vocab_size)
        generation = Generation(sink, self._withdraw)
        return self._add(Sequence(self._model, generation, request))

    def embed(self, request: EmbeddingRequest, sink: Sink) -> Generation:
        """`submit` for a text whose vector is wanted: the last event is an EmbeddedEvent."""
        check_tokens(request.token_ids, self._model.config.vocab_size)
        return self._add(EmbeddingSequence(Generation(sink, self._withdraw), request))

    def _add(self, sequence: _AnySequence) -> Generation:
        with self._changed:
            if not self.is_healthy:
                raise EngineStoppedError("the model is being unloaded; send the request again")
            self._scheduler.add(sequence)
            self._changed.notify()
        return sequence.generation

    def read_ahead(self, token_ids: TokenIds, cache_scope: str = "") -> None:
        """Has a text read when nothing else is to do, for prompts that will begin with it.

        Any request interrupts it. No effect without a cache, or when the engine is not healthy.
        """
        tokens = as_tokens(token_ids)
        with self._changed:
            if self._ahead is not None and len(tokens) and self.is_healthy:
                self._ahead.add(tokens, cache_scope)
                self._changed.notify()

    def close(self) -> None:
        """Fails every request with EngineStoppedError; returns when the thread has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._fail_waiting()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _withdraw(self, generation: Generation) -> bool:
        with self._changed:
            return self._scheduler.withdraw(lambda each: each.generation is generation)

    def _serve(self) -> None:
        """The thread. Only what is no Exception (an interpreter that goes down) ends it early."""
        # Beside the kernels, PyTorch only samples. To wake threads for that, which then lie in wait
        # on the kernels' processors, takes longer than a small model's pass.
        has_kernels = isinstance(self._model.executor, KernelExecutor)
        torch.set_num_threads(1 if has_kernels else NUM_TORCH_THREADS)
        try:
            while self._wait_for_work():
                self._step()
        finally:
            with self._changed:
                self._is_closed = True
            if self._ahead is not None:
                self._ahead.clear()
            self._fail_waiting()
            for sequence in list(self._scheduler.running):
                self._fail(sequence, EngineStoppedError(_STOPPED))

    def _wait_for_work(self) -> bool:
        """Whether there is some; False once closed."""
        with self._changed:
            self._is_working = False
            self._changed.wait_for(lambda: self._is_closed or self._has_work())
            self._is_working = not self._is_closed
            return self._is_working

    def _has_work(self) -> bool:
        is_ahead = self._ahead is not None and self._ahead.num_waiting > 0
        return is_ahead or not self._scheduler.is_idle

    @torch.inference_mode()
    def _step(self) -> None:
        """One pass: take requests, schedule, run the model, sample, deliver."""
        self._take_requests()
        self._drop_cancelled()
        runs = self._scheduler.next_pass()
        if runs:
            self._run(runs)
        self._embed([each for each in self._embeddings() if each.is_ready])
        if self._scheduler.is_idle and not runs:
            self._read_ahead()

    def _take_requests(self) -> None:
        deadline = time.perf_counter() + _TAKING_S
        while time.perf_counter() < deadline:
            with self._changed:
                sequence = self._scheduler.admit()
            if sequence is None:
                return
            self._begin(sequence)

    def _drop_cancelled(self) -> None:
        for sequence in list(self._scheduler.running):
            if not sequence.generation.is_cancelled:
                continue
            if isinstance(sequence, EmbeddingSequence):
                self._leave(sequence, sequence.cancelled())
            else:
                self._finish(sequence, FinishReason.CANCELLED)

    def _begin(self, sequence: _AnySequence) -> None:
        """A sequence has got its slot."""
        if isinstance(sequence, EmbeddingSequence):
            self._start(sequence)
            return
        try:
            if self._ahead is not None:
                self._ahead.give_way(sequence.reading.tokens, sequence.cache_scope)
            sequence.take_slot()
        except Exception as error:
            self._fail(sequence, error)
        else:
            self._start(sequence)

    def _start(self, sequence: _AnySequence) -> None:
        """Gives a sequence the state behind as much of its text as there is one for, or will be."""
        tokens, scope = sequence.reading.tokens, sequence.cache_scope
        try:
            if isinstance(sequence, EmbeddingSequence):
                sequence.start(self._model.new_state())
                return
            hit = self._cache.lookup(tokens, scope) if self._cache is not None else None
            num_cached = hit.num_tokens if hit else 0
            leader, num_shared = self._leader_of(sequence, tokens)
            if leader is not None and num_shared >= num_cached + _MIN_SHARED_TOKENS:
                sequence.follow(leader, num_shared)
            elif hit is not None:
                self._resume(sequence, hit.snapshot, num_cached)
            else:
                sequence.start(self._model.new_state(), 0)
        except Exception as error:
            self._fail(sequence, error)

    def _leader_of(self, sequence: Sequence, tokens: TokenArray) -> tuple[Sequence | None, int]:
        """Who came earlier and is going to read the most of the same text, and how much that is."""
        best: Sequence | None = None
        num_shared = 0
        for other in self._scheduler.running:
            if other is sequence:
                break
            if isinstance(other, EmbeddingSequence) or other.cache_scope != sequence.cache_scope:
                continue
            num_common = _num_common(tokens, other.reading.tokens)
            if not other.is_writing and num_common > max(num_shared, other.reading.num_read):
                best, num_shared = other, num_common
        return best, num_shared

    def _resume(self, sequence: Sequence, snapshot: Snapshot, num_tokens: int) -> None:
        """Goes on from a snapshot, without a pass when that is of all there is to read."""
        state = snapshot.state.clone().to(self._model.device)
        sequence.start(state, num_tokens)
        if sequence.is_ready:
            self._write(sequence, snapshot.logits.unsqueeze(0))

    def _run(self, runs: list[Run[_AnySequence]]) -> None:
        """A pass of the model, and what follows from it for every sequence in it."""
        start = time.perf_counter()  # the copies of states for drafts are part of their cost
        segments = [run.sequence.segments(run.num_rows) for run in runs]
        try:
            logits = self._model.advance_batch([*chain(*segments)]).cpu()  # [sum of num_logits, V]
        except Exception as error:
            self._isolate([run.sequence for run in runs], error)
            return
        self._scheduler.record(runs, time.perf_counter() - start)
        row = 0
        for run, parts in zip(runs, segments, strict=True):
            run.sequence.has_read(run.num_rows)
            num_logits = sum(part.num_logits for part in parts)
            if num_logits and isinstance(run.sequence, Sequence):
                self._arrive(run.sequence, logits[row : row + num_logits])
                row += num_logits

    def _embeddings(self) -> list[EmbeddingSequence]:
        return [each for each in self._scheduler.running if isinstance(each, EmbeddingSequence)]

    def _embed(self, sequences: list[EmbeddingSequence]) -> None:
        """Reads the last tokens of texts that are read but for these, together if that goes."""
        if not sequences:
            return
        tokens = [each.last_token for each in sequences]
        states = [each.reading.state for each in sequences if each.reading.state is not None]
        try:
            vectors = self._model.final_hidden(tokens, states)
        except Exception as error:
            if len(sequences) == 1:
                self._fail(sequences[0], error)
            else:  # the states are as they were
                for each in sequences:
                    self._embed([each])
            return
        for each, vector in zip(sequences, vectors, strict=True):
            self._leave(each, each.embedded(vector))

    def _arrive(self, sequence: Sequence, logits: Tensor) -> None:
        """A sequence is at a cut of its text or at its end, and the first of these logits [1, V],
        [1 + draft, V] in a reply, are those there.
        """
        kind = sequence.reading.kind_here
        try:
            if kind is not None:
                self._leave_snapshot(sequence, logits[0], kind)
        except Exception as error:
            self._fail(sequence, error)
            return
        if sequence.is_ready:
            sequence.is_suspect = False
            self._write(sequence, logits)

    def _leave_snapshot(self, sequence: Sequence, logits: Tensor, kind: SnapshotKind) -> None:
        """For the cache, and for those who wait for it."""
        num_tokens = sequence.reading.num_read
        followers = [each for each in self._followers_of(sequence) if each.num_shared == num_tokens]
        if self._cache is None and not followers:
            return
        assert sequence.reading.state is not None
        snapshot = Snapshot.of(sequence.reading.state, logits)
        if self._cache is not None:
            tokens = sequence.reading.tokens[:num_tokens]
            self._cache.put(tokens, snapshot, kind, sequence.cache_scope)
        for each in followers:
            self._resume(each, snapshot, num_tokens)

    def _write(self, sequence: Sequence, logits: Tensor) -> None:
        try:
            reason = sequence.write(logits)
        except Exception as error:
            self._fail(sequence, error)
            return
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._leave(sequence, sequence.finished(reason))
        if self._cache is None:
            return
        try:
            end = sequence.end_of_reply()
            if end is not None:
                self._keep_end(self._cache, end, sequence.cache_scope)
        except Exception:  # the reply is out: this only makes the next one dearer
            log.exception("the state at the end of a reply could not be kept")

    def _keep_end(self, cache: StateCache, end: ReplyEnd, scope: str) -> None:
        """The state at the end of a reply, when it is there but for a pass; else it is read ahead
        of the next request.
        """
        point, num_tokens = end.point, end.point.num_tokens
        state, logits = point.state, point.logits
        num_missing = len(end.tokens) - num_tokens
        if 0 < num_missing <= _MAX_END_ROWS:
            missing = torch.from_numpy(end.tokens[num_tokens:])
            logits = self._model.advance_batch([Segment(missing, state)])[0]
            num_tokens = len(end.tokens)
        snapshot = Snapshot.of(state, logits)
        cache.put(end.tokens[:num_tokens], snapshot, SnapshotKind.REPLY_END, scope)
        if num_tokens < len(end.tokens):
            self.read_ahead(end.tokens, scope)

    def _followers_of(self, sequence: _AnySequence) -> list[Sequence]:
        running = self._scheduler.running
        return [each for each in running if isinstance(each, Sequence) and each.leader is sequence]

    def _isolate(self, sequences: list[_AnySequence], error: Exception) -> None:
        """After a pass that failed, its states are worthless. Who was alone in it has failed; of
        several each begins again from what the cache has, and runs alone until it is there.
        """
        if len(sequences) == 1:
            self._fail(sequences[0], error)
            return
        log.warning("a pass failed and is tried again one by one: %s", _one_line(error))
        for sequence in list(self._scheduler.running):
            is_lost = sequence in sequences
            if is_lost:
                sequence.is_suspect = True
                if isinstance(sequence, Sequence):
                    sequence.forget_state()
            if is_lost or sequence.leader in sequences:
                self._start(sequence)

    def _fail(self, sequence: _AnySequence, error: Exception) -> None:
        if not isinstance(error, AnserError):
            log.error("a generation failed", exc_info=error)
            error = GenerationError(_one_line(error))
        elif not isinstance(error, EngineStoppedError):
            log.error("a generation failed: %s", error)
        # Without the traceback, whose frames would keep the state in memory.
        self._leave(sequence, FailedEvent(error.with_traceback(None)))

    def _leave(self, sequence: _AnySequence, last_event: Event) -> None:
        """Frees a slot. Who waits for what this sequence would have read has to look elsewhere."""
        with self._changed:
            self._scheduler.release(sequence)
        sequence.generation.deliver(last_event)
        for each in self._followers_of(sequence):
            if not self._is_closed:
                self._start(each)

    def _fail_waiting(self) -> None:
        with self._changed:
            waiting = self._scheduler.withdraw_all()
        for sequence in waiting:
            sequence.generation.deliver(FailedEvent(EngineStoppedError(_STOPPED)))

    def _read_ahead(self) -> None:
        """Reads a piece of what requests may want later."""
        if self._ahead is None:
            return
        start = time.perf_counter()
        try:
            num_tokens = self._ahead.step(self._scheduler.num_idle_rows)
        except Exception as error:
            log.warning("a text could not be read ahead: %s", _one_line(error))
            return
        if num_tokens:
            self._scheduler.record_idle(num_tokens, time.perf_counter() - start)


def _num_common(one: TokenArray, other: TokenArray) -> int:
    """How many tokens two texts begin with alike."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


def _one_line(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return f"the model failed: {type(error).__name__}: {reason}".removesuffix(": ")
