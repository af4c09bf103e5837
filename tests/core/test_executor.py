"""Which logits a pass gives: those that its segments ask for, in both executors."""

from __future__ import annotations

import random

import pytest
import torch

from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.executor import Segment
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from tests.tools.native import require_kernels


@pytest.fixture(scope="module", params=["torch", "kernels"])
def model(request: pytest.FixtureRequest) -> Model:
    if request.param == "kernels":
        require_kernels()
    return load_model(EMBEDDED, kernels=request.param == "kernels")


@pytest.mark.parametrize("seed", range(4))
def test_each_segment_has_as_many_logits_as_it_asks_for(model: Model, seed: int) -> None:
    choices = random.Random(seed)
    segments, expected = [], []
    for _ in range(6):
        length = choices.choice((1, 3, 3, 40, 300, 700))  # more than a pass of either takes
        tokens = torch.tensor([choices.randrange(1, 1400) for _ in range(length)])
        num_logits = choices.choice((0, 1, min(2, length), length // 2, length))
        segments.append(Segment(tokens.to(torch.int32), model.new_state(), num_logits))
        logits, _ = model.forward(tokens.tolist(), all_logits=True)
        expected.append(logits[length - num_logits :])
    together = model.advance_batch(segments)
    assert together.shape == (sum(each.num_logits for each in segments), model.config.vocab_size)
    torch.testing.assert_close(together, torch.cat(expected), rtol=1e-3, atol=1e-3)


def test_no_logits_at_all(model: Model) -> None:
    state = model.new_state()
    logits = model.advance_batch([Segment(torch.tensor([1, 2, 3]), state, 0)])
    assert logits.shape == (0, model.config.vocab_size)
    _, expected = model.forward([1, 2, 3])
    assert torch.equal(state.wkv, expected.wkv)


def test_more_logits_than_tokens_are_refused(model: Model) -> None:
    for num_logits in (-1, 4):
        with pytest.raises(ValueError, match="logits of no more tokens"):
            model.advance_batch([Segment(torch.tensor([1, 2, 3]), model.new_state(), num_logits)])
