"""Generation: one thread runs the model for all requests, one after the other, in order of arrival.

Rules for threads: `submit`, `cancel` and `close` may be called from any; a sink is called from the
engine's thread, and once from the caller of `cancel` or `close` when the request was still waiting.
It must not block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import torch
from torch import Tensor

from rwkv_core.errors import AnserError, EngineStoppedError, GenerationError, OptionError
from rwkv_core.model import Model
from rwkv_core.sampler import Sampler, SamplingOptions
from rwkv_core.state import State
from rwkv_core.stops import StopMatcher
from rwkv_core.tokenizer import IncrementalDecoder

log = logging.getLogger(__name__)

# Tokens of a prompt between two looks at the cancel flag.
_PROMPT_CHUNK = 512

_STOPPED = "the model was unloaded before the reply was finished; send the request again"


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate after a prompt; without a limit when `max_new_tokens` is None."""

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingOptions
    max_new_tokens: int | None
    stops: tuple[str, ...]


class FinishReason(Enum):
    STOP = "stop"  # the model ended the text, or a stop string did
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class GenerationStats:
    """`num_generated_tokens` counts every sampled token, those of a stop too."""

    num_prompt_tokens: int = 0  # that were read
    num_generated_tokens: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0


@dataclass(frozen=True)
class TextEvent:
    """Whole characters, never empty, and the tokens sampled since the event before."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class FinishedEvent:
    """The last event. `token_ids` are all that were sampled, also those of a stop."""

    reason: FinishReason
    stats: GenerationStats
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class FailedEvent:
    """The last event of a request that could not be finished."""

    error: AnserError


Event: TypeAlias = TextEvent | FinishedEvent | FailedEvent
Sink: TypeAlias = Callable[[Event], None]


class Generation:
    """A request that an engine has taken. Its sink gets text, and a last event that says why."""

    def __init__(self, engine: Engine, request: GenerationRequest, sink: Sink) -> None:
        self.request = request
        self._engine = engine
        self._sink: Sink | None = sink
        self._is_cancelled = False

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def cancel(self) -> None:
        """Ends the request within one token, or one chunk of its prompt; at once if it waits.

        Never blocks for long. No effect on a finished one.
        """
        self._is_cancelled = True
        if self._engine.withdraw(self):
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


class _Cancelled(Exception):
    """The request was cancelled."""


class Engine:
    """Runs requests on `model`. `close` it: until then its thread keeps the model in memory."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._changed = threading.Condition()  # guards the fields below
        self._waiting: deque[Generation] = deque()
        self._running: Generation | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="anser-engine", daemon=True)
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether requests are taken: False once closed, or if the thread has died."""
        return self._thread.is_alive() and not self._is_closed

    def submit(self, request: GenerationRequest, sink: Sink) -> Generation:
        """Takes a request, to be run after those before it.

        Raises OptionError for one that cannot be run, EngineStoppedError when the engine is not
        healthy.
        """
        _check(request, self._model.config.vocab_size)
        generation = Generation(self, request, sink)
        with self._changed:
            if not self.is_healthy:
                raise EngineStoppedError("the model is being unloaded; send the request again")
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    def withdraw(self, generation: Generation) -> bool:
        """Takes a request back that has not begun; False if it has."""
        with self._changed:
            if generation not in self._waiting:
                return False
            self._waiting.remove(generation)
            return True

    def close(self) -> None:
        """Fails every request with EngineStoppedError; returns when the thread has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._fail_waiting()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        """The thread. Only what is no Exception (an interpreter that goes down) ends it early."""
        try:
            while self._take():
                self._run_one()
        finally:
            with self._changed:
                self._is_closed = True
            self._fail_waiting()

    def _take(self) -> bool:
        """Makes the next request the running one, when there is one; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return False
            self._running = self._waiting.popleft()
            return True

    def _run_one(self) -> None:
        generation = self._running
        assert generation is not None
        last_event: Event = FailedEvent(EngineStoppedError(_STOPPED))
        try:
            last_event = _Run(self._model, generation, lambda: self._is_closed).run()
        except EngineStoppedError:
            pass
        except AnserError as error:
            log.error("a generation failed: %s", error)
            # Without the traceback, whose frames would keep the state in memory.
            last_event = FailedEvent(error.with_traceback(None))
        except Exception as error:
            log.exception("a generation failed")
            last_event = FailedEvent(GenerationError(_one_line(error)))
        finally:
            self._running = None
            generation.deliver(last_event)

    def _fail_waiting(self) -> None:
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for generation in waiting:
            generation.deliver(FailedEvent(EngineStoppedError(_STOPPED)))


class _Run:
    """One request from its prompt to its last token, on the engine's thread."""

    def __init__(self, model: Model, generation: Generation, is_closed: Callable[[], bool]) -> None:
        request = generation.request
        self._model = model
        self._generation = generation
        self._is_closed = is_closed
        self._prompt = request.prompt_token_ids
        self._max_new_tokens = request.max_new_tokens
        self._sampler = Sampler(
            request.sampling,
            model.config.vocab_size,
            request.prompt_token_ids,
            token_bytes=model.tokenizer.token_bytes,
        )
        self._decoder = IncrementalDecoder(model.tokenizer)
        self._stops = StopMatcher(request.stops)
        self._state: State | None = None
        self._num_prompt_tokens = 0
        self._token_ids: list[int] = []
        self._num_sent_tokens = 0
        self._start_ns = time.monotonic_ns()
        self._prefill_end_ns: int | None = None

    @torch.inference_mode()
    def run(self) -> FinishedEvent:
        """Generates, and returns the last event. Raises EngineStoppedError if closed meanwhile."""
        try:
            logits = self._read_prompt()
            reason = self._write_reply(logits)
        except _Cancelled:
            reason = FinishReason.CANCELLED
        return FinishedEvent(reason, self._stats(), tuple(self._token_ids))

    def _read_prompt(self) -> Tensor:
        """Logits [vocab] after the prompt."""
        for start in range(0, len(self._prompt), _PROMPT_CHUNK):
            chunk = self._prompt[start : start + _PROMPT_CHUNK]
            logits = self._read(chunk)
            self._num_prompt_tokens += len(chunk)
        self._prefill_end_ns = time.monotonic_ns()
        return logits

    def _write_reply(self, logits: Tensor) -> FinishReason:
        while True:
            token_id = self._sampler.sample(logits)
            self._sampler.accept(token_id)
            self._token_ids.append(token_id)
            self._send(self._stops.push(self._decoder.push(token_id)))
            if self._stops.matched is not None:
                return FinishReason.STOP
            if token_id in self._model.tokenizer.eos_token_ids:
                self._send_rest()
                return FinishReason.STOP
            if len(self._token_ids) == self._max_new_tokens:
                self._send_rest()
                return FinishReason.LENGTH if self._stops.matched is None else FinishReason.STOP
            logits = self._read((token_id,))  # never the last token: nothing comes after it

    def _read(self, token_ids: Sequence[int]) -> Tensor:
        """Runs the model, unless the request has been given up; logits [vocab] on the CPU."""
        if self._is_closed():
            raise EngineStoppedError(_STOPPED)
        if self._generation.is_cancelled:
            raise _Cancelled
        logits, self._state = self._model.forward(token_ids, self._state)
        return logits.cpu()

    def _send_rest(self) -> None:
        """What was held back: it has become text, as nothing follows that would make it a stop."""
        self._send(self._stops.push(self._decoder.flush()) + self._stops.flush())

    def _send(self, text: str) -> None:
        if text:
            token_ids = tuple(self._token_ids[self._num_sent_tokens :])
            self._num_sent_tokens = len(self._token_ids)
            self._generation.deliver(TextEvent(text, token_ids))

    def _stats(self) -> GenerationStats:
        now = time.monotonic_ns()
        prefill_end = self._prefill_end_ns or now
        return GenerationStats(
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=len(self._token_ids),
            prefill_ns=prefill_end - self._start_ns,
            decode_ns=now - prefill_end,
        )


def _check(request: GenerationRequest, vocab_size: int) -> None:
    """Raises OptionError for a request that the model cannot run."""
    ids = request.prompt_token_ids
    if not ids:
        raise OptionError("the prompt is empty; it needs at least one token")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise OptionError(
            f"the prompt has the token id {wrong}; this model's are 0 to {vocab_size - 1}"
        )
    if request.max_new_tokens is not None and request.max_new_tokens < 1:
        raise OptionError(f"max_new_tokens must be at least 1, not {request.max_new_tokens}")


def _one_line(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return f"the model failed: {type(error).__name__}: {reason}".removesuffix(": ")
