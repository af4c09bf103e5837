"""The engine on a real, small, random model: what it writes, and every way to end."""

from __future__ import annotations

import gc
import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rwkv_core.engine import (
    Engine,
    Event,
    FinishedEvent,
    FinishReason,
    Generation,
    GenerationRequest,
    GenerationStats,
    TextEvent,
)
from rwkv_core.errors import (
    EngineBusyError,
    EngineStoppedError,
    GenerationError,
    OptionError,
)
from rwkv_core.executor import Segment
from rwkv_core.formulas import Weights
from rwkv_core.model import Model
from rwkv_core.sampler import SamplingOptions
from rwkv_core.state import State
from rwkv_core.tokenizer import WorldTokenizer
from rwkv_core.torch_executor import TorchExecutor
from tests.tools.random_checkpoint import TINY, random_tensors
from tests.tools.receiver import Receiver
from tests.tools.waiting import TIMEOUT_S, wait_until

# 300 tokens: bytes at 1 to 256, then some that end inside characters or hold several of them.
VOCABULARY = WorldTokenizer(
    [None, *(bytes((value,)) for value in range(256)), "你好🙂".encode(), b"\xf0\x9f", b"\n\n"]
)
PROMPT = tuple(VOCABULARY.encode("User: hello\n\nAssistant:"))


class WatchedModel(Model):
    """The real model; `before` is called with the number of each pass, and may wait or fail."""

    def __init__(self) -> None:
        self.weights = Weights.load(TINY, random_tensors(TINY).__getitem__)
        super().__init__(TINY, TorchExecutor(TINY, self.weights), VOCABULARY)
        self.calls: list[list[tuple[int, ...]]] = []  # what each pass has read
        self.states: list[weakref.ref[Tensor]] = []  # of each request
        self.before: Callable[[int], None] = lambda index: None

    def new_state(self, batch_size: int = 1) -> State:
        state = super().new_state(batch_size)
        self.states.append(weakref.ref(state.wkv))
        return state

    def advance_batch(self, segments: Sequence[Segment], *, all_logits: bool = False) -> Tensor:
        self.calls.append([tuple(each.token_ids.tolist()) for each in segments])
        self.before(len(self.calls))
        return super().advance_batch(segments, all_logits=all_logits)


@pytest.fixture
def model() -> WatchedModel:
    return WatchedModel()


@pytest.fixture
def engine(model: WatchedModel) -> Iterator[Engine]:
    engine = Engine(model)
    yield engine
    model.before = lambda index: None
    engine.close()


@pytest.fixture
def narrow_engine(model: WatchedModel) -> Iterator[Engine]:
    """Runs one request at a time."""
    engine = Engine(model, num_slots=1)
    yield engine
    model.before = lambda index: None
    engine.close()


def request(prompt: Sequence[int] = PROMPT, **changes: Any) -> GenerationRequest:
    """Greedy, 40 tokens, no stops."""
    made = GenerationRequest(tuple(prompt), SamplingOptions(temperature=0), 40, ())
    return replace(made, **changes)


def run(engine: Engine, wanted: GenerationRequest) -> Receiver:
    receiver = Receiver()
    engine.submit(wanted, receiver)
    receiver.wait()
    return receiver


def greedy(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """What the engine should write, by the model alone."""
    token_ids: list[int] = []
    state = Model.new_state(model)
    pending = list(prompt)
    while len(token_ids) < count:
        segment = Segment(torch.tensor(pending), state)
        token_ids.append(int(Model.advance_batch(model, [segment])[0].argmax()))
        pending = token_ids[-1:]
    return token_ids


def test_a_reply_is_what_the_model_says(engine: Engine, model: WatchedModel) -> None:
    wanted = greedy(model, PROMPT, 40)
    receiver = run(engine, request())
    finished = receiver.finished()
    assert finished.reason is FinishReason.LENGTH
    assert list(finished.token_ids) == wanted
    assert receiver.text == VOCABULARY.decode(wanted)
    assert all(event.text for event in receiver.texts)
    assert [token_id for event in receiver.texts for token_id in event.token_ids] == wanted
    assert finished.stats.num_prompt_tokens == len(PROMPT)
    assert finished.stats.num_generated_tokens == 40
    assert min(finished.stats.prefill_ns, finished.stats.decode_ns) > 0
    # The prompt, then each token but the last, after which nothing was asked.
    assert model.calls == [[PROMPT], *([(token_id,)] for token_id in wanted[:-1])]


def test_a_long_prompt_is_read_in_pieces(engine: Engine, model: WatchedModel) -> None:
    prompt = torch.randint(1, 257, (1300,), generator=torch.Generator().manual_seed(1)).tolist()
    finished = run(engine, request(prompt, max_new_tokens=8)).finished()
    assert list(finished.token_ids) == greedy(model, prompt, 8)
    pieces = [len(piece) for call in model.calls for piece in call]
    assert max(pieces) <= 256
    assert sum(pieces[:-7]) == 1300
    assert pieces[-7:] == [1] * 7
    assert finished.stats.num_prompt_tokens == 1300


def test_a_stop_string_ends_the_reply_before_itself(engine: Engine, model: WatchedModel) -> None:
    whole = run(engine, request()).text
    for start, length in ((3, 4), (10, 1), (0, 2), (25, 7)):
        stop = whole[start : start + length]
        model.calls.clear()
        receiver = run(engine, request(stops=("never", stop)))
        finished = receiver.finished()
        assert (finished.reason, finished.stop) == (FinishReason.STOP, stop)
        assert receiver.text == whole[: whole.index(stop)]
        # It ends with the token that completes the stop, and this token is not read.
        assert VOCABULARY.decode(finished.token_ids).endswith(stop[-1])
        assert finished.stats.num_generated_tokens == len(finished.token_ids) < 40
        assert len(model.calls) == len(finished.token_ids)


def test_what_was_held_back_comes_at_the_end(engine: Engine) -> None:
    whole = run(engine, request()).text
    receiver = run(engine, request(stops=(whole[-5:] + "X", whole[-1] + "Y")))
    assert receiver.finished().reason is FinishReason.LENGTH
    assert receiver.finished().stop == ""
    assert receiver.text == whole
    # A complete stop that waited for a longer one, which began before, is a stop at the end.
    receiver = run(engine, request(stops=(whole[-5:] + "X", whole[-4:])))
    assert receiver.finished().reason is FinishReason.STOP
    assert receiver.text == whole[: whole.index(whole[-4:])]


def likely(model: WatchedModel, token_ids: Sequence[int]) -> None:
    """Makes the model write these tokens in turn, as far as its state allows, by a large bias."""
    direction = torch.zeros(TINY.n_embd)
    direction[0] = 1
    model.weights.ln_out.weight[0] = 0
    model.weights.ln_out.bias[0] = 1
    for token_id in token_ids:
        model.weights.head[token_id] += 100 * direction


def test_the_end_of_text_ends_the_reply(engine: Engine, model: WatchedModel) -> None:
    likely(model, [0])
    receiver = run(engine, request(max_new_tokens=None))
    finished = receiver.finished()
    assert (receiver.text, finished.reason, finished.token_ids) == ("", FinishReason.STOP, (0,))
    assert finished.stats.num_generated_tokens == 1
    assert model.calls == [[PROMPT]]


def test_half_a_character_is_shown_only_when_no_more_can_come(
    engine: Engine, model: WatchedModel
) -> None:
    likely(model, [258])  # the first half of an emoji, again and again
    receiver = run(engine, request(max_new_tokens=3))
    assert [event.text for event in receiver.texts] == ["\ufffd", "\ufffd", "\ufffd"]
    assert [event.token_ids for event in receiver.texts] == [(258, 258), (258,), ()]


def test_a_seed_repeats_and_requests_do_not_disturb_each_other(engine: Engine) -> None:
    seeded = request(sampling=SamplingOptions(temperature=1.5, top_k=0, top_p=1, seed=7))
    first = run(engine, seeded)
    receivers = [Receiver() for _ in range(4)]
    for receiver, seed in zip(receivers, (8, 7, -1, 7), strict=True):
        engine.submit(replace(seeded, sampling=replace(seeded.sampling, seed=seed)), receiver)
    texts = [receiver.text for receiver in receivers if receiver.wait()]
    assert [text == first.text for text in texts] == [False, True, False, True]


def closed_gate(model: WatchedModel) -> threading.Event:
    """The model waits for this event before it reads anything."""
    gate = threading.Event()

    def before(index: int) -> None:
        gate.wait(TIMEOUT_S)

    model.before = before
    return gate


def test_requests_are_served_in_order(narrow_engine: Engine, model: WatchedModel) -> None:
    order: list[int] = []
    receivers = [Receiver() for _ in range(5)]
    gate = closed_gate(model)  # until all are there
    for number, receiver in enumerate(receivers):

        def sink(event: Event, number: int = number, receiver: Receiver = receiver) -> None:
            order.append(number)
            receiver(event)

        narrow_engine.submit(request(max_new_tokens=5), sink)
    gate.set()
    receivers[-1].wait()
    assert order == sorted(order)
    assert len({receiver.text for receiver in receivers}) == 1


def test_cancelling_stops_within_one_token(engine: Engine, model: WatchedModel) -> None:
    receiver = Receiver()
    running: list[Generation] = []
    ready = threading.Event()

    def sink(event: Event) -> None:
        ready.wait(TIMEOUT_S)
        receiver(event)
        if len(receiver.texts) == 5:
            running[0].cancel()

    running.append(engine.submit(request(max_new_tokens=None), sink))
    ready.set()
    finished = receiver.finished()
    assert finished.reason is FinishReason.CANCELLED
    assert len(receiver.texts) == 5
    assert model.calls[-1] != [finished.token_ids[-1:]]
    assert len(model.calls) == len(finished.token_ids)
    running[0].cancel()  # a second time, and too late: nothing happens
    assert receiver.events.count(finished) == 1


def test_cancelling_stops_inside_a_prompt(engine: Engine, model: WatchedModel) -> None:
    receiver = Receiver()
    is_reading, may_go_on = threading.Event(), threading.Event()

    def before(index: int) -> None:
        is_reading.set()
        may_go_on.wait(TIMEOUT_S)

    model.before = before
    generation = engine.submit(request([5] * 5000), receiver)
    assert is_reading.wait(TIMEOUT_S)
    generation.cancel()
    may_go_on.set()
    finished = receiver.finished()
    assert (finished.reason, finished.token_ids) == (FinishReason.CANCELLED, ())
    assert finished.stats.num_prompt_tokens == 5000
    assert len(model.calls) == 1


def test_cancelling_a_waiting_request_frees_it_at_once(
    narrow_engine: Engine, model: WatchedModel
) -> None:
    gate = closed_gate(model)
    first, second, third = Receiver(), Receiver(), Receiver()
    narrow_engine.submit(request(), first)
    wait_until(lambda: narrow_engine.load.num_running == 1)
    waiting = narrow_engine.submit(request([7] * 100), second)
    narrow_engine.submit(request(), third)
    assert narrow_engine.load.num_waiting == 2
    waiting.cancel()
    assert narrow_engine.load.num_waiting == 1
    assert second.events == [FinishedEvent(FinishReason.CANCELLED, GenerationStats())]
    kept = weakref.ref(waiting)
    del waiting
    gc.collect()
    assert kept() is None
    gate.set()
    assert first.finished().reason is third.finished().reason is FinishReason.LENGTH
    assert len(second.events) == 1
    assert all((7,) * 100 not in call for call in model.calls)


def test_too_many_requests_are_refused(model: WatchedModel) -> None:
    engine = Engine(model, num_slots=2, max_queue=1)
    gate = closed_gate(model)
    receivers = [Receiver() for _ in range(3)]
    generations = [engine.submit(request(), receiver) for receiver in receivers]
    with pytest.raises(EngineBusyError, match=r"^server busy, please try again\.  maximum pending"):
        engine.submit(request(), Receiver())
    wait_until(lambda: engine.load.num_running == 2)
    generations[2].cancel()
    last = Receiver()
    engine.submit(request(), last)
    gate.set()
    assert last.finished().reason is FinishReason.LENGTH
    engine.close()


@pytest.mark.parametrize("failing_call", [1, 2, 10])
def test_a_failing_step_ends_its_own_request_only(
    engine: Engine, model: WatchedModel, failing_call: int, caplog: pytest.LogCaptureFixture
) -> None:
    good = run(engine, request())
    model.calls.clear()

    def before(index: int) -> None:
        if index == failing_call:
            raise RuntimeError("the device is lost\nat line 7")

    model.before = before
    bad = run(engine, request())
    error = bad.failure()
    assert isinstance(error, GenerationError)
    assert str(error) == "the model failed: RuntimeError: the device is lost"
    assert good.text.startswith(bad.text)
    assert run(engine, request()).text == good.text
    assert engine.is_healthy
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [bool(record.exc_info) for record in logged] == [True]


@pytest.mark.parametrize("is_lasting", [True, False])
@pytest.mark.parametrize("position", [None, 0, 15])
def test_who_shares_a_failing_pass_goes_on(
    engine: Engine, model: WatchedModel, position: int | None, is_lasting: bool
) -> None:
    """One token makes passes fail: in a prompt, or from some place in a reply on."""
    prompts = [[40 + number, *PROMPT] for number in range(4)]
    wanted = [greedy(model, prompt, 40) for prompt in prompts]
    elsewhere = set().union(*prompts, wanted[0], wanted[1], wanted[3])
    poison = (
        next(each for each in wanted[2][position:] if each not in elsewhere)
        if position is not None
        else prompts[2][0]
    )
    num_failures = 0
    gate = threading.Event()

    def before(index: int) -> None:
        nonlocal num_failures
        gate.wait(TIMEOUT_S)
        if any(poison in piece for piece in model.calls[-1]) and (is_lasting or not num_failures):
            num_failures += 1
            raise RuntimeError("poison")

    model.before = before
    receivers = [Receiver() for _ in prompts]
    for prompt, receiver in zip(prompts, receivers, strict=True):
        engine.submit(request(prompt), receiver)
    gate.set()
    for number, receiver in enumerate(receivers):
        if is_lasting and number == 2:
            assert isinstance(receiver.failure(), GenerationError)
            num_written = 0 if position is None else wanted[2].index(poison) + 1
            assert receiver.text == VOCABULARY.decode(wanted[2][:num_written])
        else:
            assert list(receiver.finished().token_ids) == wanted[number]
    assert num_failures == (2 if is_lasting else 1)
    assert engine.is_healthy


def test_a_failure_keeps_no_state_in_memory(engine: Engine, model: WatchedModel) -> None:
    model.weights.head[3] = float("nan")
    receiver = run(engine, request())
    error = receiver.failure()
    assert isinstance(error, GenerationError)
    assert "logits are not finite numbers" in str(error)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    run(engine, request())  # so that the thread is past the first
    gc.collect()
    assert model.states[0]() is None


def test_a_finished_request_keeps_no_state_in_memory(engine: Engine, model: WatchedModel) -> None:
    for _ in range(2):
        run(engine, request(max_new_tokens=3))
    gc.collect()
    assert len(model.states) == 2
    assert model.states[0]() is None


def test_a_receiver_that_fails_is_alone_with_it(
    engine: Engine, model: WatchedModel, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []

    def broken(event: Event) -> None:
        events.append(event)
        raise ValueError("nobody is here")

    engine.submit(request(max_new_tokens=None), broken)
    assert run(engine, request()).finished().reason is FinishReason.LENGTH
    assert len(events) == 1
    assert engine.is_healthy
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_closing_fails_everyone(narrow_engine: Engine, model: WatchedModel) -> None:
    engine = narrow_engine
    is_running, may_go_on = threading.Event(), threading.Event()

    def before(index: int) -> None:
        is_running.set()
        may_go_on.wait(TIMEOUT_S)

    model.before = before
    running, waiting = Receiver(), Receiver()
    engine.submit(request(), running)
    engine.submit(request(), waiting)
    assert is_running.wait(TIMEOUT_S)
    closer = threading.Thread(target=engine.close)
    closer.start()
    assert isinstance(waiting.failure(), EngineStoppedError)  # while the other still runs
    assert not engine.is_healthy
    may_go_on.set()
    closer.join(TIMEOUT_S)
    assert not closer.is_alive()
    assert isinstance(running.failure(), EngineStoppedError)
    assert len(model.calls) == 1
    with pytest.raises(EngineStoppedError):
        engine.submit(request(), Receiver())
    engine.close()  # again: nothing happens


def test_an_engine_may_be_closed_by_a_receiver(engine: Engine) -> None:
    receiver = Receiver()

    def sink(event: Event) -> None:
        engine.close()
        receiver(event)

    engine.submit(request(), sink)
    assert isinstance(receiver.failure(), EngineStoppedError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_shows_and_fails_everyone(engine: Engine, model: WatchedModel) -> None:
    may_die = threading.Event()

    def before(index: int) -> None:
        may_die.wait(TIMEOUT_S)
        raise SystemExit

    model.before = before
    running, waiting = Receiver(), Receiver()
    engine.submit(request(), running)
    engine.submit(request(), waiting)
    may_die.set()
    assert isinstance(running.failure(), EngineStoppedError)
    assert isinstance(waiting.failure(), EngineStoppedError)
    assert not engine.is_healthy
    with pytest.raises(EngineStoppedError):
        engine.submit(request(), Receiver())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"prompt_token_ids": ()}, "the prompt is empty"),
        ({"prompt_token_ids": (1, 300)}, "token id 300; this model's are 0 to 299"),
        ({"prompt_token_ids": (-1, 3)}, "token id -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
    ],
)
def test_requests_that_cannot_run_are_refused(
    engine: Engine, changes: dict[str, Any], wanted: str
) -> None:
    receiver = Receiver()
    with pytest.raises(OptionError, match=wanted):
        engine.submit(replace(request(), **changes), receiver)
    assert not receiver.events


def test_everyone_gets_one_last_event_whatever_happens(model: WatchedModel) -> None:
    """Many threads send and cancel while calls fail and the engine is closed."""
    engine = Engine(model)
    wanted = run(engine, request(max_new_tokens=12)).text

    def before(index: int) -> None:
        if index % 23 == 0:
            raise RuntimeError("now and then")

    model.before = before
    receivers: list[Receiver] = []
    served = threading.Semaphore(0)

    def client(seed: int) -> None:
        choices = random.Random(seed)
        for _ in range(12):
            receiver = Receiver()
            try:
                generation = engine.submit(request(max_new_tokens=12), receiver)
            except EngineStoppedError:
                return
            receivers.append(receiver)
            if choices.random() < 0.4:
                generation.cancel()
            receiver.wait()
            served.release()

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for each in clients:
        each.start()
    for _ in range(40):
        assert served.acquire(timeout=TIMEOUT_S)
    engine.close()
    for each in clients:
        each.join(TIMEOUT_S)
        assert not each.is_alive()
    for receiver in receivers:
        assert sum(not isinstance(event, TextEvent) for event in receiver.events) == 1
        assert wanted.startswith(receiver.text)
        last = receiver.wait()
        if isinstance(last, FinishedEvent) and last.reason is FinishReason.LENGTH:
            assert receiver.text == wanted
