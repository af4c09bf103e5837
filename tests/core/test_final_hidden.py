"""Final hidden states: those that the head reads, to the bit, from the kernels and from PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkv_core import kernels
from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.loading import load_model
from tests.core.test_loading import write_tokenizer
from tests.tools.native import require_kernels
from tests.tools.random_checkpoint import TINY, random_tensors, write_pth
from tests.tools.states import same

TEXT = [5, 9, 1, 7, 7, 3]


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    require_kernels()


@pytest.fixture(params=[1, 3])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Also of one layer, which has no value residual."""
    config = replace(TINY, n_layer=request.param)
    write_pth(tmp_path / "model.pth", random_tensors(config, 1))
    write_tokenizer(tmp_path, TINY.vocab_size)
    return tmp_path / "model.pth"


def test_the_head_makes_the_logits_of_it(path: Path) -> None:
    model = load_model(path, kernels=True)
    states = [model.new_state() for _ in range(11)]  # more than one pass takes
    for length, state in enumerate(states):
        if length:
            model.advance(TEXT[: length % 5 + 1], state)
    before = [state.clone() for state in states]
    tokens = [length % TINY.vocab_size for length in range(11)]
    hidden = model.final_hidden(tokens, states)
    assert all(same(*pair) for pair in zip(before, states, strict=True))
    head = kernels.empty_matrix("F32", TINY.vocab_size, TINY.n_embd)
    checkpoint = open_checkpoint(path)
    weights = checkpoint.read("head.weight").float().contiguous()
    checkpoint.close()
    kernels.fill(head, "F32", 0, weights.numpy().reshape(-1).view("uint8"))
    logits = [model.advance([token], state) for token, state in zip(tokens, states, strict=True)]
    assert torch.equal(kernels.matmul(head, hidden), torch.stack(logits))


def test_it_is_the_formulas_hidden_state(path: Path) -> None:
    hidden = []
    for with_kernels in (True, False):
        model = load_model(path, kernels=with_kernels)
        state = model.new_state()
        model.advance(TEXT, state)
        hidden.append(model.final_hidden([4], [state]))
    torch.testing.assert_close(*hidden, rtol=1e-3, atol=1e-3)
