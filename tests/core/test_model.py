"""`Model` in PyTorch: how a text is cut, and with whom it is read, changes nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwkv_core.executor import Segment
from rwkv_core.formulas import Weights
from rwkv_core.model import Model
from rwkv_core.state import State
from rwkv_core.tokenizer import WorldTokenizer
from rwkv_core.torch_executor import PREFILL_CHUNK, TorchExecutor
from tests.tools.random_checkpoint import TINY, random_tensors
from tests.tools.states import parts, same

# Of the logits' standard deviation.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> Model:
    weights = Weights.load(TINY, random_tensors(TINY, seed=3).__getitem__)
    return Model(TINY, TorchExecutor(TINY, weights), WorldTokenizer.world())


def random_tokens(length: int, seed: int = 0) -> Tensor:
    return torch.randint(TINY.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < TOLERANCE * expected.std()


def assert_states_close(ours: State, expected: State) -> None:
    for part, wanted in zip(parts(ours), parts(expected), strict=True):
        assert torch.allclose(part, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.lists(st.integers(0, TINY.vocab_size - 1), min_size=1, max_size=140),
    cuts=st.sets(st.integers(1, 139), max_size=6),
)
def test_splitting_a_text_anywhere_changes_nothing(
    model: Model, tokens: list[int], cuts: set[int]
) -> None:
    whole, last_state = model.forward(tokens, all_logits=True)
    edges = [0, *sorted(cut for cut in cuts if cut < len(tokens)), len(tokens)]
    state = model.new_state()
    pieces = [
        model.advance(tokens[start:end], state, all_logits=True) for start, end in pairwise(edges)
    ]
    assert_close(torch.cat(pieces), whole)
    assert_states_close(state, last_state)


def test_a_text_longer_than_a_pass(model: Model) -> None:
    tokens = random_tokens(PREFILL_CHUNK + 100)
    whole, whole_state = model.forward(tokens.tolist(), all_logits=True)
    state = model.new_state()
    single = torch.stack([model.advance([token], state) for token in tokens.tolist()])
    assert_close(single, whole)
    assert_states_close(state, whole_state)
    assert_close(model.advance(tokens, model.new_state()), whole[-1])


def test_forward_leaves_the_state_and_advance_changes_it(model: Model) -> None:
    _, state = model.forward(random_tokens(20).tolist())
    before = state.clone()
    logits, after = model.forward([1, 2, 3], state)
    assert same(state, before)
    assert not same(after, before)
    assert torch.equal(model.advance([1, 2, 3], state), logits)
    assert same(state, after)


def test_segments_of_any_lengths_are_read_as_if_alone(model: Model) -> None:
    lengths = [1, 40, 1, 7, 40, 33, 1, 2]
    texts = [random_tokens(length, seed) for seed, length in enumerate(lengths)]
    starts = [model.forward(random_tokens(5 + seed).tolist())[1] for seed in range(len(lengths))]
    for all_logits in (False, True):
        states = [state.clone() for state in starts]
        segments = [Segment(*pair) for pair in zip(texts, states, strict=True)]
        together = model.advance_batch(segments, all_logits=all_logits)
        alone = [
            model.forward(text.tolist(), state, all_logits=True)
            for text, state in zip(texts, starts, strict=True)
        ]
        expected = [logits if all_logits else logits[-1:] for logits, _ in alone]
        assert_close(together, torch.cat(expected))
        for state, (_, wanted) in zip(states, alone, strict=True):
            assert_states_close(state, wanted)


@pytest.mark.parametrize("batch_size", [1, 3, 20])  # 20 are read in chunks of the smallest length
def test_a_batch_of_equal_lengths(model: Model, batch_size: int) -> None:
    tokens = random_tokens(batch_size * 70).view(batch_size, 70)
    first, state = model.forward_batch(tokens[:, :50], all_logits=True)
    before = state.clone()
    second, after = model.forward_batch(tokens[:, 50:], state)
    assert same(state, before)
    assert first.shape == (batch_size, 50, TINY.vocab_size)
    for row in range(batch_size):
        logits, alone = model.forward(tokens[row].tolist(), all_logits=True)
        assert_close(first[row], logits[:50])
        assert_close(second[row], logits[-1])
        assert_states_close(after.split()[row], alone)


def test_what_cannot_be_read_is_refused_and_changes_nothing(model: Model) -> None:
    state = model.new_state()
    other = Segment(random_tokens(3), model.new_state())
    for tokens in ([], [1, TINY.vocab_size], [-1]):
        with pytest.raises(ValueError, match="token"):
            model.advance(tokens, state)
    with pytest.raises(ValueError, match="two texts at once"):
        model.advance_batch(
            [Segment(random_tokens(3), state), other, Segment(random_tokens(3), state)]
        )
    with pytest.raises(ValueError, match="one sequence"):
        model.advance([1], model.new_state(2))
    narrow = State(state.time_shift[..., :32], state.channel_shift, state.wkv)
    with pytest.raises(ValueError, match="a state has"):
        model.advance([1], narrow)
    with pytest.raises(ValueError, match="token"):
        model.advance_batch([])
    with pytest.raises(ValueError, match="2 for 3 sequences"):
        model.forward_batch(random_tokens(3).view(3, 1), model.new_state(2))
    assert same(state, model.new_state())
    assert same(other.state, model.new_state())


def test_sizes(model: Model) -> None:
    tensors = random_tensors(TINY, seed=3)
    assert model.num_weight_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert model.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    state = model.new_state(2)
    assert state.nbytes == sum(part.nbytes for part in parts(state))
    assert [each.batch_size for each in (state, *state.split(), State.cat([state, state]))] == [
        2,
        1,
        1,
        4,
    ]
