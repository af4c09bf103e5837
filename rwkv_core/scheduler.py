"""Who runs, and how many tokens of whom each pass of the model reads. Plain Python: no tensors.

A pass takes the next token of every sequence that is writing, with a draft of those behind it where
one pays, and pieces of the prompts that are being read. It has as many rows (tokens) as the machine
reads in the time that a stream may wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rwkv_core.errors import EngineBusyError
from rwkv_core.row_cost import RowCost

# How long a pass may take: with streams in it, whose readers see it as a pause; with prompts only,
# so that a request that arrives or is cancelled meanwhile is not left waiting; and for what nobody
# waits for.
STREAMING_S = 0.1
READING_S = 0.5
IDLE_S = 0.05

# Rows that a pass with prompts has at least: with fewer, reading is as slow as writing.
MIN_ROWS = 8
# Rows of the first pass, when nothing has been measured, and how much more the next one may have.
_FIRST_ROWS = 32
_MAX_GROWTH = 2.0

_CPU_SLOTS = 8
_GPU_SLOTS = 32
# A slot has its state, and now and then others: from before text that is held back, and behind a
# draft. All slots together may take one part in so many of the memory.
_STATES_PER_SLOT = 3
_MEMORY_PARTS = 16

BUSY = "server busy, please try again.  maximum pending requests exceeded"  # Ollama's words


class Schedulable(Protocol):
    """What the scheduler asks of a sequence."""

    @property
    def num_pending(self) -> int:
        """Rows that can be read in one go: tokens, those counted twice that are read twice because
        of a draft. 0 while it waits for another sequence.
        """

    @property
    def num_left(self) -> int:
        """Tokens that it has to read before it writes the next one."""

    @property
    def is_writing(self) -> bool:
        """Whether its prompt is behind it."""

    @property
    def is_suspect(self) -> bool:
        """Whether it is to run alone, as it was in a pass that failed."""

    def draft(self, row_cost: float) -> None:
        """Guesses tokens to be read in the next pass, as many as pay; then `num_pending` has more.

        For a sequence that is writing. `row_cost` is what a row takes, as a share of the time in
        which every such sequence gets a token.
        """


S = TypeVar("S", bound=Schedulable)


@dataclass(frozen=True)
class Run(Generic[S]):
    """What a pass reads of one sequence."""

    sequence: S
    num_rows: int  # tokens, those counted twice that are read twice


class Scheduler(Generic[S]):
    """A queue, first come first served, and the slots of the sequences that run.

    Not safe for several threads at once: the engine calls `add`, `withdraw`, `admit` and `release`
    under its lock, the others from its own thread.
    """

    def __init__(self, num_slots: int, max_queue: int, max_rows: int) -> None:
        """`max_queue` is how many may wait while every slot is taken."""
        self.num_slots = num_slots
        self.max_queue = max_queue
        self.running: list[S] = []  # in the order of their arrival
        self._waiting: deque[S] = deque()
        self._streaming = RowBudget(STREAMING_S, max_rows)
        self._reading = RowBudget(READING_S, max_rows)
        self._idle = RowBudget(IDLE_S, max_rows)
        self._row_cost = RowCost()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not (self.running or self._waiting)

    def add(self, sequence: S) -> None:
        """Puts a sequence at the end of the queue. Raises EngineBusyError when that is full."""
        if len(self._waiting) + len(self.running) >= self.num_slots + self.max_queue:
            raise EngineBusyError(BUSY)
        self._waiting.append(sequence)

    def withdraw(self, is_it: Callable[[S], bool]) -> bool:
        """Takes a sequence out of the queue; False if it is not there."""
        found = next((each for each in self._waiting if is_it(each)), None)
        if found is None:
            return False
        self._waiting.remove(found)
        return True

    def withdraw_all(self) -> list[S]:
        """Empties the queue."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def admit(self) -> S | None:
        """Gives the next in the queue a slot, when there is one and the other."""
        if not self._waiting or len(self.running) >= self.num_slots:
            return None
        sequence = self._waiting.popleft()
        self.running.append(sequence)
        return sequence

    def release(self, sequence: S) -> None:
        """Frees the slot of a sequence."""
        self.running.remove(sequence)

    def next_pass(self) -> list[Run[S]]:
        """What the next pass reads; nothing when no sequence runs, or all wait for others."""
        ready = [each for each in self.running if each.num_pending]
        suspects = [each for each in ready if each.is_suspect]
        if suspects:
            ready = suspects[:1]
        writing = [each for each in ready if each.is_writing]
        if not suspects:
            self._draft(writing)
        readers = [each for each in ready if not each.is_writing]
        runs = [Run(each, each.num_pending) for each in writing]
        if readers:
            budget = self._streaming if writing else self._reading
            num_rows = budget.num_rows - sum(run.num_rows for run in runs)
            runs += _share(readers, max(num_rows, MIN_ROWS))
        return runs

    def record(self, runs: list[Run[S]], seconds: float) -> None:
        """How long a pass has taken, before its sequences are told that they have been read."""
        num_rows = sum(run.num_rows for run in runs)
        self._row_cost.record(num_rows, seconds)
        is_writing = [run.sequence.is_writing for run in runs]
        if not all(is_writing):
            budget = self._streaming if any(is_writing) else self._reading
            budget.record(num_rows, seconds)

    @property
    def num_idle_rows(self) -> int:
        """How many tokens to read at once of what nobody waits for, while no sequence runs."""
        return self._idle.num_rows

    def record_idle(self, num_rows: int, seconds: float) -> None:
        self._idle.record(num_rows, seconds)

    def _draft(self, writing: list[S]) -> None:
        """A draft is worth it for one sequence when it is for all: a row of it delays them all."""
        num_rows = sum(each.num_pending for each in writing)
        row_cost = len(writing) * self._row_cost.share(num_rows)
        for each in writing:
            each.draft(row_cost)


def default_num_slots(state_bytes: int, available: int | None, *, is_gpu: bool = False) -> int:
    """How many requests to run at once, with `available` bytes of memory (None: unknown).

    Enough to fill a pass: more make each wait longer and all together little faster.
    """
    wanted = _GPU_SLOTS if is_gpu else _CPU_SLOTS
    if available is None or is_gpu:
        return wanted
    return max(1, min(wanted, available // _MEMORY_PARTS // (_STATES_PER_SLOT * state_bytes)))


class RowBudget:
    """How many rows a pass may have to take about so long, by how long the last ones took."""

    def __init__(self, seconds: float, max_rows: int) -> None:
        self._seconds = seconds
        self._max_rows = max_rows
        self.num_rows = min(_FIRST_ROWS, max_rows)

    def record(self, num_rows: int, seconds: float) -> None:
        """A pass of that many rows has taken so long. Too slow a one counts at once."""
        factor = min(self._seconds / max(seconds, 1e-6), _MAX_GROWTH)
        # One with fewer rows than it might have had says nothing about how fast more would be.
        if factor < 1 or num_rows >= self.num_rows:
            self.num_rows = max(MIN_ROWS, min(self._max_rows, int(num_rows * factor)))


def _share(readers: list[S], num_rows: int) -> Iterator[Run[S]]:
    """Deals the rows of a pass out to prompts.

    Half go to the prompt that came first, which so is never held up; the others to those that have
    least left, so that a question does not wait for a book. What one cannot use the next one gets.
    """
    if not readers:
        return
    first, *others = readers
    others.sort(key=lambda each: each.num_left)
    num_first = min(first.num_pending, num_rows - num_rows // 2 if others else num_rows)
    num_rows -= num_first
    for reader in others:
        num_tokens = min(reader.num_pending, num_rows)
        if num_tokens:
            yield Run(reader, num_tokens)
        num_rows -= num_tokens
    yield Run(first, min(first.num_pending, num_first + num_rows))
