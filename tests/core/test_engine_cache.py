"""Many requests at once, with states that are reused: every text as if it had been alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_core.cache import ModelKey, SnapshotKind, StateCache
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.engine import (
    CutPoint,
    Engine,
    FinishedEvent,
    FinishReason,
    Generation,
    GenerationRequest,
)
from rwkv_core.executor import Segment
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from rwkv_core.sampler import SamplingOptions
from tests.tools.native import require_kernels
from tests.tools.receiver import Receiver
from tests.tools.states import same
from tests.tools.waiting import TIMEOUT_S, wait_until

KEY = ModelKey("a" * 64, "b" * 64)
LARGE = 1 << 30


class CountingModel(Model):
    """The demo model; counts what it reads, and can be made to wait."""

    def __init__(self, path: Path) -> None:
        loaded = load_model(path, kernels=True)
        super().__init__(loaded.config, loaded.executor, loaded.tokenizer)
        self.num_read = 0
        self.before: Callable[[], None] = lambda: None

    def advance_batch(self, segments: Sequence[Segment], *, all_logits: bool = False) -> Tensor:
        self.before()
        self.num_read += sum(len(segment.token_ids) for segment in segments)
        return super().advance_batch(segments, all_logits=all_logits)


@pytest.fixture(scope="module")
def the_model() -> CountingModel:
    require_kernels()
    return CountingModel(EMBEDDED)


@pytest.fixture
def model(the_model: CountingModel) -> Iterator[CountingModel]:
    the_model.num_read = 0
    yield the_model
    the_model.before = lambda: None


@pytest.fixture
def cache() -> StateCache:
    return StateCache(KEY, LARGE)


@pytest.fixture
def engine(model: CountingModel, cache: StateCache) -> Iterator[Engine]:
    engine = Engine(model, cache=cache)
    yield engine
    engine.close()


def greedy(model: Model, text: str, **changes: object) -> GenerationRequest:
    ids = tuple(model.tokenizer.encode(text))
    made = GenerationRequest(ids, SamplingOptions(temperature=0), 40, ())
    return replace(made, **changes)  # type: ignore[arg-type]


def run(engine: Engine, request: GenerationRequest) -> Receiver:
    receiver = Receiver()
    engine.submit(request, receiver)
    receiver.wait()
    return receiver


def cold(model: Model, request: GenerationRequest) -> Receiver:
    """The same request, alone in an engine without a cache."""
    engine = Engine(model, num_slots=1)
    try:
        return run(engine, request)
    finally:
        engine.close()


def snapshots(cache: StateCache) -> dict[tuple[int, ...], SnapshotKind]:
    """The tokens and kinds of what the cache holds in memory."""
    found: dict[tuple[int, ...], SnapshotKind] = {}
    share = cache._memory._shares.get(cache.key)
    for node in share.tree if share else ():
        assert node.entry is not None
        found[tuple(node.tokens.tolist())] = node.entry.kind
    return found


def assert_all_true(cache: StateCache, model: Model) -> None:
    """Every snapshot in memory is, to the bit, what reading its tokens gives."""
    for tokens in snapshots(cache):
        hit = cache.lookup(tokens)
        assert hit is not None
        assert hit.num_tokens == len(tokens)
        logits, state = model.forward(tokens)
        assert same(hit.snapshot.state, state)
        assert torch.equal(hit.snapshot.logits, logits)


QUESTION = "User: What is 4 + 5?\n\nAssistant:"


def test_a_full_hit_reads_nothing(engine: Engine, model: CountingModel, cache: StateCache) -> None:
    wanted = greedy(model, QUESTION)
    first = run(engine, wanted).finished()
    assert first.stats.num_cached_tokens == 0
    assert first.stats.num_prompt_tokens == len(wanted.prompt_token_ids)
    num_read = model.num_read
    again = run(engine, wanted).finished()
    assert again.token_ids == first.token_ids
    assert again.stats.num_cached_tokens == again.stats.num_prompt_tokens
    assert model.num_read - num_read == len(first.token_ids) - 1
    wait_until(lambda: engine.load.is_idle)
    assert_all_true(cache, model)


def test_scopes_share_nothing(engine: Engine, model: CountingModel, cache: StateCache) -> None:
    """Neither through the cache, nor in flight, nor by what is read ahead."""
    everyone = greedy(model, QUESTION)
    alone = cold(model, everyone).finished().token_ids
    tokens = everyone.prompt_token_ids
    hit = None
    for scope in ("", "one"):
        assert cache.lookup(tokens, scope) is None
        first = run(engine, replace(everyone, cache_scope=scope)).finished()
        assert first.stats.num_cached_tokens == 0
        assert first.token_ids == alone
        hit = cache.lookup(tokens, scope)
        assert hit is not None
        assert hit.num_tokens == len(tokens)
        engine.read_ahead((*tokens, 5, 6), scope)
        wait_until(lambda: engine.load.is_idle)
        ahead = cache.lookup((*tokens, 5, 6), scope)
        assert ahead is not None
        assert ahead.num_tokens == len(tokens) + 2
    # At once: two of one scope share what is read, others do not.
    long = greedy(model, "User: " + "one two three " * 60 + "\n\nAssistant:", max_new_tokens=3)
    scopes = ["", "", "a", "a", "b"]
    hold = threading.Event()
    model.before = lambda: wait_until(hold.is_set)
    num_read = model.num_read
    receivers = [Receiver() for _ in scopes]
    for scope, receiver in zip(scopes, receivers, strict=True):
        engine.submit(replace(long, cache_scope=scope), receiver)
    hold.set()
    for receiver in receivers:
        receiver.wait()
    assert len({receiver.finished().token_ids for receiver in receivers}) == 1
    assert model.num_read - num_read <= 3 * (len(long.prompt_token_ids) + 3) + 10
    assert model.num_read - num_read >= 3 * len(long.prompt_token_ids)


def test_a_prompt_goes_on_where_a_reply_ended(engine: Engine, model: CountingModel) -> None:
    first = greedy(model, QUESTION)
    reply = run(engine, first).finished().token_ids
    assert reply[-1] == 0  # the end of text, which no state ever holds
    text = f"{model.tokenizer.decode(reply[:-1])}\n\nUser: Thanks!\n\nAssistant:"
    longer = replace(
        first, prompt_token_ids=(*first.prompt_token_ids, *model.tokenizer.encode(text))
    )
    second = run(engine, longer)
    num_known = len(first.prompt_token_ids) + len(reply) - 1
    assert second.finished().stats.num_cached_tokens >= num_known - 1
    assert second.text == cold(model, longer).text


def test_cut_points_leave_snapshots(
    engine: Engine, model: CountingModel, cache: StateCache
) -> None:
    ids = tuple(model.tokenizer.encode(QUESTION * 200))[:2500]
    cuts = (CutPoint(7, SnapshotKind.SYSTEM_PROMPT), CutPoint(9, SnapshotKind.TURN))
    outside = (CutPoint(0, SnapshotKind.TURN), CutPoint(9999, SnapshotKind.TURN))
    wanted = GenerationRequest(ids, SamplingOptions(temperature=0), 1, (), cuts + outside)
    run(engine, wanted)
    wait_until(lambda: engine.load.is_idle)
    found = {len(tokens): kind for tokens, kind in snapshots(cache).items()}
    assert found == {
        7: SnapshotKind.SYSTEM_PROMPT,
        9: SnapshotKind.TURN,
        1024: SnapshotKind.CHECKPOINT,
        2048: SnapshotKind.CHECKPOINT,
        2500: SnapshotKind.REPLY_END,  # with one token, the end of the prompt is that of the reply
    }
    assert_all_true(cache, model)


@pytest.mark.parametrize("seed", range(8))
def test_a_stop_never_enters_a_state(model: CountingModel, cache: StateCache, seed: int) -> None:
    """Stops of any length anywhere: what is kept ends at the last token before the stop."""
    engine = Engine(model, cache=cache)
    choices = random.Random(seed)
    sampling = SamplingOptions(temperature=2.0, top_k=0, top_p=1.0, seed=seed)
    whole = greedy(model, QUESTION, sampling=sampling, max_new_tokens=60)
    text = cold(model, whole).text
    try:
        for _ in range(12):
            start = choices.randrange(len(text) - 1)
            stop = text[start : start + choices.randint(1, 12)]
            # One that shares a beginning, so that text is held back and let go again.
            decoy = text[choices.randrange(len(text)) :][:3] + "\x00"
            stopped = run(engine, replace(whole, stops=(stop, decoy)))
            finished = stopped.finished()
            assert stopped.text == text[: text.index(stop)]
            wait_until(lambda: engine.load.is_idle)
            # The longest beginning of the reply without anything of the stop.
            tokens = list(finished.token_ids)
            safe = next(
                count
                for count in range(len(tokens), -1, -1)
                if stopped.text.startswith(model.tokenizer.decode(tokens[:count]))
            )
            prompt = whole.prompt_token_ids
            hit = cache.lookup((*prompt, *tokens))
            assert hit is not None
            kept = [each for each in snapshots(cache) if each[: len(prompt)] == prompt]
            assert (*prompt, *tokens[:safe]) in kept
    finally:
        engine.close()
    assert_all_true(cache, model)


def gate_of(model: CountingModel) -> threading.Event:
    gate = threading.Event()

    def before() -> None:
        gate.wait(TIMEOUT_S)

    model.before = before
    return gate


def test_equal_prompts_are_read_once(model: CountingModel) -> None:
    for cache in (StateCache(KEY, LARGE), None):  # the cache is not needed for it
        engine = Engine(model, cache=cache)
        gate = gate_of(model)
        prompt = tuple(model.tokenizer.encode(QUESTION * 30))
        wanted = GenerationRequest(prompt, SamplingOptions(temperature=0), 1, ())
        other = replace(wanted, prompt_token_ids=(*prompt[:300], 5, 6, 7))
        receivers = [Receiver() for _ in range(6)]
        model.num_read = 0
        for receiver in receivers[:5]:
            engine.submit(wanted, receiver)
        engine.submit(other, receivers[5])
        gate.set()
        texts = [receiver.wait() and receiver.text for receiver in receivers]
        assert model.num_read == len(prompt) + 3
        assert texts[:5] == [cold(model, wanted).text] * 5
        assert texts[5] == cold(model, other).text
        engine.close()


def test_a_follower_reads_itself_when_its_leader_is_gone(model: CountingModel) -> None:
    engine = Engine(model)
    gate = gate_of(model)
    wanted = greedy(model, QUESTION * 300, max_new_tokens=5)
    leader, follower = Receiver(), Receiver()
    first = engine.submit(wanted, leader)
    engine.submit(wanted, follower)
    # It waits while the first pass is held, or has its slot already: it follows either way.
    wait_until(lambda: engine.load.num_running + engine.load.num_waiting == 2)
    first.cancel()
    gate.set()
    assert leader.finished().reason is FinishReason.CANCELLED
    assert follower.finished().token_ids == cold(model, wanted).finished().token_ids
    engine.close()


def test_what_is_read_ahead_is_there(
    engine: Engine, model: CountingModel, cache: StateCache
) -> None:
    ids = model.tokenizer.encode(QUESTION * 40)
    engine.read_ahead(ids)
    wait_until(lambda: engine.load.is_idle)
    assert engine.load.num_read_ahead == 1
    assert model.num_read == len(ids)
    longer = greedy(model, QUESTION * 41)
    finished = run(engine, longer).finished()
    assert finished.stats.num_cached_tokens == len(ids)
    wait_until(lambda: engine.load.is_idle)
    assert_all_true(cache, model)


def test_a_request_goes_before_what_is_read_ahead_and_shares_it(
    engine: Engine, model: CountingModel, cache: StateCache
) -> None:
    ids = model.tokenizer.encode(QUESTION * 300)
    calls = 0
    is_reading, gate = threading.Event(), threading.Event()

    def before() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            is_reading.set()
            gate.wait(TIMEOUT_S)

    model.before = before
    engine.read_ahead(ids)
    assert is_reading.wait(TIMEOUT_S)
    wanted = greedy(model, QUESTION * 301, max_new_tokens=3)
    receiver = Receiver()
    engine.submit(wanted, receiver)
    gate.set()
    finished = receiver.finished()
    assert finished.stats.num_cached_tokens > 0
    wait_until(lambda: engine.load.is_idle)
    assert engine.load.num_read_ahead == 0  # the request has read all of it
    assert model.num_read == len(wanted.prompt_token_ids) + len(finished.token_ids) - 1
    assert_all_true(cache, model)


def test_another_request_only_holds_up_what_is_read_ahead(
    engine: Engine, model: CountingModel, cache: StateCache
) -> None:
    ids = tuple(model.tokenizer.encode(QUESTION * 300))
    engine.read_ahead(ids)
    finished = run(engine, greedy(model, "User: Hello!\n\nAssistant:")).finished()
    assert finished.stats.num_cached_tokens == 0
    wait_until(lambda: engine.load.is_idle)
    assert engine.load.num_read_ahead == 1
    assert ids in snapshots(cache)
    assert_all_true(cache, model)


@dataclass
class Sent:
    request: GenerationRequest
    receiver: Receiver
    generation: Generation


@pytest.mark.parametrize("budget", [LARGE, 30 << 20, 3 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_events_gives_the_texts_of_cold_runs(
    model: CountingModel, seed: int, budget: int
) -> None:
    """Chats that grow, are edited, retried, branched, cancelled and stopped, several at once."""
    choices = random.Random(seed)
    cache = StateCache(KEY, budget)
    engine = Engine(model, cache=cache, num_slots=choices.choice((1, 3, 8)))
    vocabulary = [model.tokenizer.encode(text) for text in (QUESTION, "User: Hello!\n\nAssistant:")]
    histories: list[tuple[int, ...]] = [()]
    sent: list[Sent] = []
    for _ in range(25):
        history = choices.choice(histories)
        if choices.random() < 0.3:  # an edit
            history = history[: choices.randrange(len(history) + 1)]
        words = tuple(choices.choice(vocabulary) * choices.choice((1, 1, 1, 12)))
        prompt = (*history, *words, *(choices.randrange(1, 1400) for _ in range(3)))
        if sent and choices.random() < 0.25:  # another try
            prompt = tuple(choices.choice(sent).request.prompt_token_ids)
        sampling = choices.choice(
            (
                SamplingOptions(temperature=0),
                SamplingOptions(temperature=1.5, top_k=0, seed=choices.randrange(3)),
                SamplingOptions(seed=4, repeat_penalty=1.2, presence_penalty=0.3),
            )
        )
        cuts = tuple(
            CutPoint(choices.randrange(len(prompt)), choices.choice(list(SnapshotKind)))
            for _ in range(choices.randrange(4))
        )
        stops = choices.choice(((), ("\n\n",), ("e", "an", "\n\nUser:")))
        request = GenerationRequest(prompt, sampling, choices.choice((1, 8, 40)), stops, cuts)
        receiver = Receiver()
        generation = engine.submit(request, receiver)
        sent.append(Sent(request, receiver, generation))
        histories.append(prompt)
        if choices.random() < 0.3:
            engine.read_ahead(prompt + tuple(words))
        if choices.random() < 0.4:
            time.sleep(choices.random() * 0.02)
        if choices.random() < 0.2:
            choices.choice(sent).generation.cancel()
        if choices.random() < 0.3:
            event = choices.choice(sent).receiver.wait()
            if isinstance(event, FinishedEvent):
                histories.append((*request.prompt_token_ids, *event.token_ids))
    for each in sent:
        finished = each.receiver.finished()
        alone = cold(model, each.request)
        if finished.reason is FinishReason.CANCELLED:
            assert alone.text.startswith(each.receiver.text)
        else:
            assert finished.token_ids == alone.finished().token_ids
            assert each.receiver.text == alone.text
            assert finished.reason is alone.finished().reason
    wait_until(lambda: engine.load.is_idle)
    engine.close()
    assert_all_true(cache, model)
    statistics = cache.statistics()
    assert statistics.num_bytes <= budget
    assert statistics.num_tokens_reused
