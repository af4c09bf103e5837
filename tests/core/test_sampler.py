"""Sampling: llama.cpp's chain, RWKV's penalties against the authors' sampler, seeds."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rwkv.utils import PIPELINE, PIPELINE_ARGS  # type: ignore[import-untyped]
from torch import Tensor

from rwkv_core.errors import GenerationError, OptionError
from rwkv_core.sampler import Sampler, SamplingOptions
from rwkv_core.tokenizer import WorldTokenizer

WORLD = WorldTokenizer.world()
PLAIN = SamplingOptions(temperature=1, top_k=0, top_p=1, seed=1)
GREEDY = SamplingOptions(temperature=0)


def make(options: SamplingOptions, vocab_size: int, prompt: list[int] | None = None) -> Sampler:
    return Sampler(options, vocab_size, prompt or [], token_bytes=lambda token_id: b"word")


def kept(probabilities: list[float], **options: Any) -> set[int]:
    """The tokens that are ever drawn."""
    sampler = make(replace(PLAIN, **options), len(probabilities))
    logits = torch.tensor(probabilities).log()
    return {sampler.sample(logits) for _ in range(400)}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 1}, {3}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": -1}, {0, 1, 2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0}, {3}),
        ({"top_p": 0.69}, {2, 3}),
        ({"top_p": 0.71}, {1, 2, 3}),
        ({"min_p": 0.24}, {0, 1, 2, 3}),
        ({"min_p": 0.26}, {1, 2, 3}),
        ({"min_p": 0.74}, {2, 3}),
        ({"min_p": 1}, {3}),
        # 4/9, 3/9, 2/9 are left by top_k: top_p is measured on them.
        ({"top_k": 3, "top_p": 0.76}, {2, 3}),
        # The cuts are made before the temperature, however flat it makes the rest.
        ({"top_p": 0.69, "temperature": 100}, {2, 3}),
        ({"min_p": 0.74, "temperature": 100}, {2, 3}),
        ({"temperature": 0.01}, {3}),
        ({"temperature": 1e-30}, {3}),
        ({"temperature": 0}, {3}),
    ],
)
def test_what_each_cut_leaves(options: dict[str, float], wanted: set[int]) -> None:
    assert kept([0.1, 0.2, 0.3, 0.4], **options) == wanted


@pytest.mark.parametrize(
    ("probabilities", "typical_p", "wanted"),
    [
        ([0.97, 0.01, 0.01, 0.01], 0.5, {0}),
        # The likeliest token surprises less than is usual here; the others come first.
        ([0.4, 0.2, 0.2, 0.2], 0.5, {1, 2, 3}),
        ([0.4, 0.2, 0.2, 0.2], 0, {1}),
        ([0.0, 0.5, 0.5], 0.99, {1, 2}),
    ],
)
def test_locally_typical_sampling(
    probabilities: list[float], typical_p: float, wanted: set[int]
) -> None:
    assert kept(probabilities, typical_p=typical_p) == wanted


def test_typical_p_comes_before_top_p() -> None:
    # typical_p leaves three times 0.2; of their sum each is a third, so that top_p needs two.
    assert len(kept([0.4, 0.2, 0.2, 0.2], typical_p=0.5, top_p=0.6)) == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("vocab_size", [8, 4000])
def test_tokens_are_drawn_by_their_probability(temperature: float, vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.full((vocab_size,), -60.0)
    logits[:8] = torch.randn(8, generator=generator)
    wanted = (logits[:8].double() / temperature).softmax(0)
    sampler = make(replace(PLAIN, temperature=temperature), vocab_size)
    count = 4000
    drawn = Counter(sampler.sample(logits) for _ in range(count))
    for token_id, probability in enumerate(wanted.tolist()):
        sigma = math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn[token_id] / count - probability) < 4.5 * sigma


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), top_p=st.floats(0, 0.999), scale=st.sampled_from([0.1, 1.0, 5.0])
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(seed: int, top_p: float, scale: float) -> None:
    """Also where they are more than the head that is sorted first."""
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(seed)) * scale
    probabilities, order = logits.double().softmax(0).sort(descending=True)
    needed = int((probabilities.cumsum(0) < top_p).sum()) + 1
    rank = {token_id: index for index, token_id in enumerate(order.tolist())}
    # The flattest temperature makes the last of those that are left as likely as the first.
    sampler = make(replace(PLAIN, top_p=top_p, temperature=100, seed=seed), 3000)
    drawn = [rank[sampler.sample(logits)] for _ in range(200)]
    assert max(drawn) <= needed  # one more where the sum is right at the border
    assert max(drawn) >= needed * 0.9 - 1


def test_the_same_seed_draws_the_same_whoever_else_draws() -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0))
    alone = make(replace(PLAIN, seed=42), 500)
    wanted = [alone.sample(logits) for _ in range(50)]
    torch.manual_seed(0)
    random.seed(0)
    first, other = make(replace(PLAIN, seed=42), 500), make(replace(PLAIN, seed=43), 500)
    drawn, others = [], []
    for _ in range(50):
        torch.rand(3)
        others.append(other.sample(logits))
        drawn.append(first.sample(logits))
    assert drawn == wanted != others
    before = (torch.random.get_rng_state(), random.getstate())
    first.sample(logits)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()


def test_without_a_seed_every_request_draws_its_own() -> None:
    logits = torch.zeros(50_000)
    samplers = [make(replace(PLAIN, seed=-1), 50_000) for _ in range(4)]
    assert len({tuple(each.sample(logits) for _ in range(4)) for each in samplers}) == 4


class AuthorsModel:
    """Gives the authors' pipeline the logits that it is told, whatever it reads."""

    def __init__(self, logits: Tensor) -> None:
        self._rows = iter(logits)

    def forward(self, tokens: list[int], state: object) -> tuple[Tensor, object]:
        return next(self._rows).clone(), None


class World:
    """World's vocabulary for the authors' pipeline, whose own takes seconds to load."""

    encode = staticmethod(WORLD.encode)
    decode = staticmethod(WORLD.decode)


@pytest.mark.parametrize("decay", [0.9, 0.996, 1.0])
def test_penalties_are_those_of_the_authors(decay: float) -> None:
    """The likeliest token at each step, of few that repeat much, blanks and digits too."""
    special = [WORLD.encode_bytes(b)[0] for b in (b" ", b"\t", b"7", b"01", b"  ", b"\n", b"\xff")]
    usual = [*range(300, 313), *special]
    vocab_size = max(usual) + 1
    logits = torch.full((120, vocab_size), -50.0)
    generator = torch.Generator().manual_seed(7)
    logits[:, usual] = torch.randn(120, len(usual), generator=generator)
    seen: list[int] = []

    class Recorder(PIPELINE):  # type: ignore[misc]
        def __init__(self) -> None:
            self.model, self.tokenizer = AuthorsModel(logits), World()

        def sample_logits(self, logits: Tensor, **options: Any) -> int:
            seen.append(super().sample_logits(logits, **options))
            return seen[-1]

    arguments = PIPELINE_ARGS(
        temperature=1.0, top_p=0, alpha_presence=0.5, alpha_frequency=0.4, alpha_decay=decay
    )
    Recorder().generate("text", token_count=120, args=arguments)

    options = replace(GREEDY, presence_penalty=0.5, frequency_penalty=0.4, penalty_decay=decay)
    sampler = Sampler(options, vocab_size, [300, 301], token_bytes=WORLD.token_bytes)
    drawn = []
    for row in logits:
        drawn.append(sampler.sample(row))
        sampler.accept(drawn[-1])
    assert drawn == seen
    assert set(special[:4]) <= set(drawn)


@given(
    last_n=st.integers(-1, 8),
    prompt=st.lists(st.integers(0, 9), max_size=12),
    reply=st.lists(st.integers(0, 9), max_size=12),
    logits=st.lists(st.floats(-4, 4, width=32), min_size=10, max_size=10),
)
def test_repeat_penalty_concerns_the_last_tokens(
    last_n: int, prompt: list[int], reply: list[int], logits: list[float]
) -> None:
    sampler = make(replace(GREEDY, repeat_penalty=1.5, repeat_last_n=last_n), 10, prompt)
    for token_id in reply:
        sampler.accept(token_id)
    text = prompt + reply
    recent = set(text if last_n < 0 else text[len(text) - min(last_n, len(text)) :])
    wanted = torch.tensor(logits)
    for token_id in recent:
        wanted[token_id] *= 1 / 1.5 if logits[token_id] > 0 else 1.5
    chosen = sampler.sample(torch.tensor(logits))
    assert wanted[chosen] == pytest.approx(wanted.max().item())


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    options = replace(PLAIN, repeat_penalty=2, presence_penalty=1, frequency_penalty=1, top_k=5)
    sampler = make(options, 100, [1, 2, 3])
    for _ in range(5):
        sampler.accept(sampler.sample(logits))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("options", [GREEDY, PLAIN, SamplingOptions()])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_fail_in_one_line(options: SamplingOptions, bad: float) -> None:
    logits = torch.zeros(100)
    logits[60] = bad
    with pytest.raises(GenerationError, match="logits are not finite numbers") as failed:
        make(options, 100).sample(logits)
    assert "\n" not in str(failed.value)
    with pytest.raises(GenerationError):
        make(options, 100).sample(torch.full((100,), -math.inf))


@pytest.mark.parametrize("options", [GREEDY, PLAIN, SamplingOptions(), replace(PLAIN, min_p=0.1)])
def test_a_token_that_is_ruled_out_is_never_drawn(options: SamplingOptions) -> None:
    logits = torch.full((100,), -math.inf)
    logits[[17, 30]] = 0
    sampler = make(replace(options, typical_p=0.999), 100)
    assert {sampler.sample(logits) for _ in range(100)} <= {17, 30}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("temperature", -0.1, "between 0 and 100"),
        ("temperature", math.nan, "between 0 and 100"),
        ("temperature", math.inf, "between 0 and 100"),
        ("top_k", -2, "at least -1"),
        ("top_p", 1.1, "between 0 and 1"),
        ("min_p", -1, "between 0 and 1"),
        ("typical_p", 2, "between 0 and 1"),
        ("repeat_last_n", -2, "at least -1"),
        ("repeat_penalty", 0, "between 0.01 and 100"),
        ("presence_penalty", 1e9, "between -100 and 100"),
        ("frequency_penalty", -101, "between -100 and 100"),
        ("penalty_decay", 1.5, "between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused_by_name(name: str, value: float, wanted: str) -> None:
    fields: dict[str, Any] = {name: value}
    with pytest.raises(OptionError) as refused:
        SamplingOptions(**fields)
    assert str(refused.value) == f"option {name} must be {wanted}, not {value}"


def test_a_large_vocabulary_costs_little() -> None:
    """The fastest of many steps, in time of this thread: what else runs makes no difference."""
    logits = torch.randn(65536, generator=torch.Generator().manual_seed(1)) * 3
    common = SamplingOptions(repeat_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5)
    for options in (SamplingOptions(), common, replace(common, top_k=0, top_p=0.5), PLAIN):
        sampler = make(options, 65536, list(range(2000)))
        seconds = []
        for _ in range(40):
            start = time.thread_time()
            sampler.accept(sampler.sample(logits))
            seconds.append(time.thread_time() - start)
        assert min(seconds) < 0.02  # twenty times what a usual machine takes
