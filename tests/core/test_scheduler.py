"""Who runs and how much of whom, on sequences that are only numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from rwkv_core.errors import EngineBusyError
from rwkv_core.scheduler import (
    MIN_ROWS,
    READING_S,
    STREAMING_S,
    RowBudget,
    Run,
    Scheduler,
    default_num_slots,
)

MAX_ROWS = 256


@dataclass(eq=False)
class Fake:
    """A prompt of `num_left` tokens with a cut after each `piece`, then an endless reply."""

    num_left: int
    piece: int = 10**9
    is_writing: bool = False
    is_suspect: bool = False
    is_waiting: bool = False
    draft_rows: int = 0
    row_cost: float = -1.0  # as told last
    num_drafted: int = 0

    @property
    def num_pending(self) -> int:
        return 0 if self.is_waiting else min(self.num_left, self.piece) + self.num_drafted

    def draft(self, row_cost: float) -> None:
        assert self.is_writing
        self.row_cost = row_cost
        self.num_drafted = self.draft_rows

    def read(self, num_rows: int) -> None:
        assert 0 < num_rows <= self.num_pending
        self.num_drafted = 0
        if not self.is_writing:
            self.num_left -= num_rows
            self.is_writing = self.num_left == 0
            self.num_left = max(self.num_left, 1)


def scheduler(num_slots: int = 8, max_queue: int = 4) -> Scheduler[Fake]:
    return Scheduler(num_slots, max_queue, MAX_ROWS)


def start(wanted: Scheduler[Fake], *sequences: Fake) -> None:
    for each in sequences:
        wanted.add(each)
        assert wanted.admit() is each


def do(wanted: Scheduler[Fake], seconds: float) -> list[Run[Fake]]:
    """A pass that takes so long."""
    runs = wanted.next_pass()
    wanted.record(runs, seconds)
    for run in runs:
        run.sequence.read(run.num_rows)
    return runs


def test_first_come_first_served_up_to_the_limits() -> None:
    wanted = scheduler(num_slots=2, max_queue=3)
    sequences = [Fake(5) for _ in range(5)]
    for each in sequences:
        wanted.add(each)
    assert wanted.num_waiting == 5
    with pytest.raises(EngineBusyError, match="server busy"):
        wanted.add(Fake(5))
    assert [wanted.admit() for _ in range(3)] == [*sequences[:2], None]
    assert not wanted.withdraw(lambda each: each is sequences[0])
    assert wanted.withdraw(lambda each: each is sequences[2])
    wanted.add(Fake(7))
    with pytest.raises(EngineBusyError):
        wanted.add(Fake(5))
    wanted.release(sequences[1])
    assert wanted.admit() is sequences[3]
    assert wanted.running == [sequences[0], sequences[3]]
    assert len(wanted.withdraw_all()) == 2
    assert not wanted.is_idle


def test_without_a_queue_only_free_slots_take_requests() -> None:
    wanted = scheduler(num_slots=1, max_queue=0)
    start(wanted, Fake(1))
    with pytest.raises(EngineBusyError):
        wanted.add(Fake(1))


def test_every_stream_is_in_every_pass() -> None:
    wanted = scheduler()
    streams = [Fake(1, is_writing=True) for _ in range(3)]
    start(wanted, streams[0], Fake(100_000), *streams[1:])
    for _ in range(50):
        runs = do(wanted, 0.05)
        assert {run.sequence for run in runs} >= set(streams)
        assert sum(run.num_rows for run in runs) <= MAX_ROWS + MIN_ROWS


@pytest.mark.parametrize("row_ms", [0.05, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("pass_ms", [0.2, 20.0])
def test_a_long_prompt_holds_a_stream_up_for_a_tenth_of_a_second(
    row_ms: float, pass_ms: float
) -> None:
    """On machines of any speed, one that changes now and then included."""
    wanted = scheduler()
    stream, book = Fake(1, is_writing=True), Fake(10**7)
    start(wanted, book)
    noise = random.Random(0)
    waits: list[float] = []
    for number in range(400):
        if number == 20:
            start(wanted, stream)
        runs = wanted.next_pass()
        rows = sum(run.num_rows for run in runs)
        seconds = (pass_ms + row_ms * rows) * noise.uniform(0.9, 1.1) / 1000
        if number > 20:
            waits.append(seconds)
            assert rows > MIN_ROWS or row_ms * MIN_ROWS + pass_ms > STREAMING_S * 0.5e3
        wanted.record(runs, seconds)
        for run in runs:
            run.sequence.read(run.num_rows)
    assert max(waits) <= max(1.3 * STREAMING_S, 1.3e-3 * (pass_ms + row_ms * (MIN_ROWS + 1)))


def test_a_slow_pass_counts_at_once_and_a_fast_one_step_by_step() -> None:
    budget = RowBudget(0.1, MAX_ROWS)
    first = budget.num_rows
    budget.record(first, 0.01)
    assert budget.num_rows == 2 * first
    budget.record(first, 0.01)  # not all that it might have had: nothing is learned
    assert budget.num_rows == 2 * first
    budget.record(2 * first, 0.4)
    assert budget.num_rows == first // 2
    for _ in range(10):
        budget.record(budget.num_rows, 100.0)
    assert budget.num_rows == MIN_ROWS
    for _ in range(20):
        budget.record(budget.num_rows, 0.0)
    assert budget.num_rows == MAX_ROWS


def test_a_question_does_not_wait_for_a_book_nor_the_book_for_questions() -> None:
    wanted = scheduler()
    book = Fake(100_000)
    start(wanted, book)
    for _ in range(10):
        do(wanted, READING_S)
    question = Fake(20)
    start(wanted, question)
    num_left = book.num_left
    for _ in range(3):
        do(wanted, READING_S)
    assert question.is_writing
    assert book.num_left < num_left
    # Questions that never end get half of a pass between them.
    start(wanted, *(Fake(300) for _ in range(4)))
    for _ in range(20):
        num_left = book.num_left
        runs = do(wanted, STREAMING_S)
        rows = {run.sequence: run.num_rows for run in runs if run.sequence is not question}
        assert 2 * rows[book] >= sum(rows.values()) - 1
        assert book.num_left == num_left - rows[book]


def test_pieces_end_at_cuts_and_what_is_left_over_goes_to_the_next() -> None:
    wanted = scheduler()
    first, second, third = Fake(100, piece=2), Fake(9), Fake(8, piece=3)
    start(wanted, first, second, third)
    rows = {run.sequence: run.num_rows for run in wanted.next_pass()}
    assert rows == {first: 2, second: 9, third: 3}


def test_who_waits_for_another_is_in_no_pass_and_a_suspect_alone_in_it() -> None:
    wanted = scheduler()
    waiting, reader, stream = Fake(9, is_waiting=True), Fake(9), Fake(1, is_writing=True)
    start(wanted, waiting, reader, stream)
    assert [run.sequence for run in wanted.next_pass()] == [stream, reader]
    reader.is_suspect = stream.is_suspect = True
    assert [run.sequence for run in wanted.next_pass()] == [reader]
    reader.is_suspect = False
    assert [run.sequence for run in wanted.next_pass()] == [stream]
    for each in (reader, stream):
        wanted.release(each)
    assert wanted.next_pass() == []


def test_a_draft_row_costs_by_how_many_it_delays() -> None:
    wanted = scheduler()
    streams = [Fake(1, is_writing=True, draft_rows=3) for _ in range(4)]
    start(wanted, *streams[:1])
    assert [run.num_rows for run in wanted.next_pass()] == [4]
    alone = streams[0].row_cost
    book = Fake(10**6)
    start(wanted, *streams[1:], book)
    streams[0].num_drafted = 0
    assert [run.num_rows for run in wanted.next_pass()[:4]] == [4] * 4
    assert 2 * alone < streams[0].row_cost == streams[3].row_cost < 4 * alone
    wanted.release(book)
    for draft_rows in range(50):  # rows that take as long as passes
        for each in streams:
            each.draft_rows, each.num_drafted = draft_rows % 4, 0
        runs = wanted.next_pass()
        wanted.record(runs, 0.01 * sum(run.num_rows for run in runs))
    assert streams[0].row_cost > 0.8
    suspect = streams[0]
    suspect.is_suspect, suspect.row_cost, suspect.num_drafted = True, -1.0, 0
    assert [(run.sequence, run.num_rows) for run in wanted.next_pass()] == [(suspect, 1)]
    assert suspect.row_cost == -1  # it is not asked


def test_everyone_is_served_in_the_end() -> None:
    choices = random.Random(1)
    wanted = scheduler(num_slots=4, max_queue=1000)
    sequences = [Fake(choices.randint(1, 3000), choices.randint(1, 900)) for _ in range(100)]
    for each in sequences:
        wanted.add(each)
    for _ in range(100_000):
        while wanted.admit():
            pass
        if wanted.is_idle:
            break
        for run in do(wanted, choices.uniform(0, 0.3)):
            if run.sequence.is_writing:
                wanted.release(run.sequence)
    assert all(each.is_writing for each in sequences)


def test_slots_by_memory() -> None:
    gib = 1 << 30
    assert default_num_slots(6 << 20, 4 * gib) == 8
    assert default_num_slots(21 << 20, 2 * gib) == 2
    assert default_num_slots(21 << 20, 0) == 1
    assert default_num_slots(21 << 20, None) == 8
    assert default_num_slots(21 << 20, None, is_gpu=True) == 32
