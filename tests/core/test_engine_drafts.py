"""Speculative decoding in the engine: whatever is drafted, all is as if nothing had been."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from rwkv_core.cache import ModelKey, Snapshot, SnapshotKind, StateCache, TokenArray
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.engine import Engine, Event, FailedEvent, FinishReason, Generation, GenerationRequest
from rwkv_core.errors import OptionError
from rwkv_core.executor import Segment
from rwkv_core.formulas import Weights
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from rwkv_core.row_cost import RowCost
from rwkv_core.sampler import SamplingOptions
from rwkv_core.tokenizer import WorldTokenizer
from rwkv_core.torch_executor import TorchExecutor
from tests.tools.native import require_kernels
from tests.tools.random_checkpoint import TINY, random_tensors
from tests.tools.receiver import Receiver
from tests.tools.snapshots import equal
from tests.tools.states import same
from tests.tools.waiting import TIMEOUT_S, wait_until

KEY = ModelKey("a" * 64, "b" * 64)
QUESTION = "User: My cat is called Tom, my dog Rex. What is my cat called?\n\nAssistant:"
GREEDY = SamplingOptions(temperature=0)
WILD = SamplingOptions(temperature=5.0, top_k=0, top_p=1.0, seed=3)
PENALIZED = SamplingOptions(seed=4, repeat_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2)


class PassesModel(Model):
    """Counts its passes; `before` may make one fail or wait."""

    def __init__(self, loaded: Model) -> None:
        super().__init__(loaded.config, loaded.executor, loaded.tokenizer)
        self.num_passes = 0
        self.before: Callable[[], None] = lambda: None

    def advance_batch(self, segments: Sequence[Segment], *, all_logits: bool = False) -> Tensor:
        self.num_passes += 1
        self.before()
        return super().advance_batch(segments, all_logits=all_logits)


@pytest.fixture(scope="module")
def the_model() -> PassesModel:
    require_kernels()
    return PassesModel(load_model(EMBEDDED, kernels=True))


@pytest.fixture
def model(the_model: PassesModel) -> Iterator[PassesModel]:
    the_model.num_passes = 0
    yield the_model
    the_model.before = lambda: None


class Oracle:
    """Drafts that are right up to some place, anywhere in the draft or behind it."""

    texts: dict[tuple[int, ...], tuple[int, ...]]  # prompt -> reply
    num_right: int | None  # for all drafts; None: any

    def __init__(self, token_ids: TokenArray, max_tokens: int) -> None:
        self._reply = self.texts[tuple(token_ids.tolist())]
        self._max_tokens = max_tokens
        self._num_written = 0
        self._choices = random.Random(len(token_ids))

    def push(self, token_id: int) -> None:
        assert token_id == self._reply[self._num_written]
        self._num_written += 1

    def draft(self, num_pending: int, row_cost: float, max_tokens: int | None) -> list[int]:
        size = self._choices.randint(0, self._max_tokens)
        if max_tokens is not None:
            assert max_tokens >= 0
            size = min(size, max_tokens)
        # Behind the end of the reply, anything.
        draft = [*self._reply[self._num_written :], 5, 0, 6, 0, 7, 8, 9, 10][:size]
        num_right = self._choices.randint(0, size) if self.num_right is None else self.num_right
        if num_right < len(draft):
            draft[num_right] = draft[num_right] % 1000 + 1
        return draft


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> type[Oracle]:
    """Takes the place of the lookup, for engines that are made from then on."""
    Oracle.texts, Oracle.num_right = {}, None
    monkeypatch.setattr("rwkv_core.sequence.Drafter", Oracle)
    return Oracle


def request(model: Model, text: str = QUESTION, **changes: object) -> GenerationRequest:
    ids = tuple(model.tokenizer.encode(text))
    return replace(GenerationRequest(ids, GREEDY, 60, ()), **changes)  # type: ignore[arg-type]


@dataclass
class Outcome:
    receiver: Receiver
    kept: dict[tuple[int, ...], tuple[SnapshotKind, Snapshot]]  # what is in the cache afterwards
    num_passes: int


def run(model: PassesModel, wanted: GenerationRequest) -> Outcome:
    """Alone, in an engine of its own, with a cache of its own."""
    cache = StateCache(KEY, 1 << 30)
    engine = Engine(model, cache=cache)
    num_passes = model.num_passes
    try:
        receiver = Receiver()
        engine.submit(wanted, receiver)
        receiver.wait()
        wait_until(lambda: engine.load.is_idle)
    finally:
        engine.close()
    kept: dict[tuple[int, ...], tuple[SnapshotKind, Snapshot]] = {}
    for node in cache._memory._shares[cache.key].tree:
        assert node.entry is not None
        kept[tuple(node.tokens.tolist())] = node.entry.kind, node.entry.snapshot
    return Outcome(receiver, kept, model.num_passes - num_passes)


def assert_alike(one: Outcome, other: Outcome) -> None:
    """Events and cache, to the bit."""
    assert one.receiver.texts == other.receiver.texts  # the same pieces with the same tokens
    first, second = one.receiver.finished(), other.receiver.finished()
    assert (first.reason, first.token_ids) == (second.reason, second.token_ids)
    assert one.kept.keys() == other.kept.keys()
    for tokens, (kind, snapshot) in one.kept.items():
        assert other.kept[tokens][0] is kind
        assert equal(other.kept[tokens][1], snapshot)


@pytest.mark.parametrize("sampling", [GREEDY, WILD, PENALIZED])
@pytest.mark.parametrize("num_right", [None, 0, 99])
def test_drafts_change_nothing(
    model: PassesModel, oracle: type[Oracle], sampling: SamplingOptions, num_right: int | None
) -> None:
    """Ends of text, limits and stops come anywhere in a draft, and text is held back in between."""
    oracle.num_right = num_right
    choices = random.Random(1)
    for number in range(5):
        text = QUESTION if number % 2 else "User: What is 38 + 47?\n\nAssistant: <think"
        limit = choices.choice((None, 1, 2, 3, 5, 20, 60)) if sampling is not WILD else 50
        wanted = request(model, text, sampling=sampling, max_new_tokens=limit)
        plain = run(model, wanted)
        whole = plain.receiver.finished().token_ids
        if number % 3 and len(plain.receiver.text) > 5:
            start = choices.randrange(len(plain.receiver.text) - 1)
            stop = plain.receiver.text[start : start + choices.randint(1, 12)]
            # Others hold text back that is let go again, for a token or for many.
            decoys = (
                plain.receiver.text[choices.randrange(start + 1) :][:3] + "\x00",
                plain.receiver.text[choices.randrange(start + 1) :][:20] + "\x00",
            )
            wanted = replace(wanted, stops=(stop, *decoys))
            plain = run(model, wanted)
        oracle.texts[tuple(wanted.prompt_token_ids)] = whole
        for most in (1, 8):
            drafted = run(model, replace(wanted, max_draft_tokens=most))
            assert_alike(plain, drafted)
            stats = drafted.receiver.finished().stats
            assert stats.num_accepted_tokens <= stats.num_draft_tokens
            if num_right == 0:
                assert stats.num_accepted_tokens == 0


def test_passes_are_saved_for_what_is_accepted(model: PassesModel, oracle: type[Oracle]) -> None:
    oracle.num_right = 99
    wanted = request(model, sampling=WILD, max_new_tokens=50)
    plain = run(model, wanted)
    oracle.texts[tuple(wanted.prompt_token_ids)] = plain.receiver.finished().token_ids
    drafted = run(model, replace(wanted, max_draft_tokens=8))
    stats = drafted.receiver.finished().stats
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 20
    assert drafted.num_passes == plain.num_passes - stats.num_accepted_tokens


def test_a_reply_that_repeats_is_drafted_from_itself(
    model: PassesModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lookup itself, as the server has it; rows are declared to be cheap."""
    monkeypatch.setattr(RowCost, "share", lambda self, num_rows: 0.05)
    looping = SamplingOptions(temperature=0, repeat_last_n=0)
    for text in ("abc abc abc abc abc abc", "1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9 1 2", QUESTION):
        wanted = request(model, text, sampling=looping, max_new_tokens=200)
        plain = run(model, wanted)
        drafted = run(model, replace(wanted, max_draft_tokens=8))
        assert_alike(plain, drafted)
        assert drafted.num_passes <= plain.num_passes + 1  # one for the state at the end
    assert run(model, wanted).receiver.finished().stats.num_draft_tokens == 0


def test_cancelling_stops_inside_a_draft(model: PassesModel, oracle: type[Oracle]) -> None:
    oracle.num_right = 99
    wanted = request(model, sampling=WILD, max_new_tokens=50, max_draft_tokens=8)
    whole = run(model, replace(wanted, max_draft_tokens=0))
    oracle.texts[tuple(wanted.prompt_token_ids)] = whole.receiver.finished().token_ids
    cache = StateCache(KEY, 1 << 30)
    engine = Engine(model, cache=cache)
    assert len(whole.receiver.texts) > 12
    for count in range(1, 12):
        receiver = Receiver()
        running: list[Generation] = []
        is_submitted = threading.Event()

        def sink(
            event: Event,
            count: int = count,
            receiver: Receiver = receiver,
            running: list[Generation] = running,
            is_submitted: threading.Event = is_submitted,
        ) -> None:
            assert is_submitted.wait(TIMEOUT_S)
            receiver(event)
            if len(receiver.texts) == count:
                running[0].cancel()

        running.append(engine.submit(wanted, sink))
        is_submitted.set()
        finished = receiver.finished()
        assert finished.reason is FinishReason.CANCELLED
        assert receiver.texts == whole.receiver.texts[:count]
        wait_until(lambda: engine.load.is_idle)
        tokens = (*wanted.prompt_token_ids, *finished.token_ids[:-1])
        hit = cache.lookup(tokens)
        assert hit is not None
        assert hit.num_tokens == len(tokens)
        logits, state = model.forward(tokens)
        assert same(hit.snapshot.state, state)
        assert torch.equal(hit.snapshot.logits, logits)
    engine.close()


def test_company_and_failing_passes_change_nothing(
    model: PassesModel, oracle: type[Oracle]
) -> None:
    """Eight at once, some with drafts, while passes fail now and then and prompts are read."""
    wanted: list[GenerationRequest] = []
    alone: list[Outcome] = []
    for number in range(8):
        sampling = (GREEDY, WILD, PENALIZED, replace(WILD, seed=9))[number % 4]
        text = f"User: I am {number}. " * (1 + 40 * (number == 5)) + "\n\nAssistant:"
        plain = request(model, text, sampling=sampling, stops=("\n\n",))
        alone.append(run(model, plain))
        oracle.texts[tuple(plain.prompt_token_ids)] = alone[-1].receiver.finished().token_ids
        wanted.append(replace(plain, max_draft_tokens=(0, 3, 8)[number % 3]))
    num_calls = 0

    def before() -> None:
        nonlocal num_calls
        gate.wait(TIMEOUT_S)
        num_calls += 1
        if num_calls in (4, 9, 30):
            raise RuntimeError("now and then")

    cache = StateCache(KEY, 1 << 30)
    engine = Engine(model, cache=cache)
    gate = threading.Event()
    model.before = before
    receivers = [Receiver() for _ in wanted]
    for each, receiver in zip(wanted, receivers, strict=True):
        engine.submit(each, receiver)
    gate.set()
    num_failed = 0
    for receiver, plain_outcome in zip(receivers, alone, strict=True):
        if isinstance(receiver.wait(), FailedEvent):
            num_failed += 1  # it was alone in a pass that failed
            continue
        assert receiver.finished().token_ids == plain_outcome.receiver.finished().token_ids
        assert receiver.text == plain_outcome.receiver.text
    assert num_failed <= 3
    model.before = lambda: None
    wait_until(lambda: engine.load.is_idle)
    engine.close()
    for node in cache._memory._shares[cache.key].tree:
        assert node.entry is not None
        logits, state = model.forward(node.tokens.tolist())
        assert same(node.entry.snapshot.state, state)
        assert torch.equal(node.entry.snapshot.logits, logits)


def test_pytorch_takes_drafts_too(oracle: type[Oracle]) -> None:
    vocabulary = WorldTokenizer([None, *(bytes((value,)) for value in range(256)), b"ab"])
    weights = Weights.load(TINY, random_tensors(TINY).__getitem__)
    model = PassesModel(Model(TINY, TorchExecutor(TINY, weights), vocabulary))
    wanted = request(model, "hello")
    plain = run(model, wanted)
    oracle.texts[tuple(wanted.prompt_token_ids)] = plain.receiver.finished().token_ids
    drafted = run(model, replace(wanted, max_draft_tokens=4))
    assert drafted.receiver.texts == plain.receiver.texts
    assert drafted.num_passes < plain.num_passes
    assert drafted.kept.keys() == plain.kept.keys()


def test_a_negative_number_of_drafts_is_refused(model: PassesModel) -> None:
    engine = Engine(model)
    with pytest.raises(OptionError, match="max_draft_tokens must be at least 0, not -1"):
        engine.submit(request(model, max_draft_tokens=-1), Receiver())
    engine.close()
