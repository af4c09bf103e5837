"""Hidden states out of the kernels: those that the head reads, to the bit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkv_core import kernels
from rwkv_core.errors import CheckpointError
from rwkv_core.hidden_model import HiddenModel
from rwkv_core.kernel_executor import KernelExecutor
from rwkv_core.loading import load_model
from tests.core.test_loading import write_tokenizer
from tests.tools.native import require_kernels
from tests.tools.random_checkpoint import TINY, random_tensors, write_pth
from tests.tools.states import same

TEXT = [5, 9, 1, 7, 7, 3]


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    require_kernels()


@pytest.fixture(params=[1, 2, 3])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Also of one layer, which has no value residual."""
    config = replace(TINY, n_layer=request.param)
    write_pth(tmp_path / "model.pth", random_tensors(config, 1))
    write_tokenizer(tmp_path, TINY.vocab_size)
    return tmp_path / "model.pth"


def test_the_head_makes_the_logits_of_it(path: Path) -> None:
    model = load_model(path, kernels=True)
    assert isinstance(model.executor, KernelExecutor)
    states = [model.new_state() for _ in range(11)]  # more than one pass takes
    for length, state in enumerate(states):
        if length:
            model.advance(TEXT[: length % 5 + 1], state)
    before = [state.clone() for state in states]
    tokens = [length % TINY.vocab_size for length in range(11)]
    hidden = model.final_hidden(tokens, states)
    assert all(same(*pair) for pair in zip(before, states, strict=True))
    head = kernels.matmul(model.executor._matrices["head.weight"], hidden)
    logits = [model.advance([token], state) for token, state in zip(tokens, states, strict=True)]
    assert torch.equal(head, torch.stack(logits))


def test_it_is_the_formulas_hidden_state(path: Path) -> None:
    hidden = []
    for with_kernels in (True, False):
        model = load_model(path, kernels=with_kernels)
        state = model.new_state()
        model.advance(TEXT, state)
        hidden.append(model.final_hidden([4], [state]))
    torch.testing.assert_close(*hidden, rtol=1e-3, atol=1e-3)


def test_a_file_that_has_changed_is_named(path: Path) -> None:
    model = load_model(path, kernels=True)
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match=r"model\.pth: was changed after its model was load"):
        model.final_hidden([4], [model.new_state()])
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.pth: cannot be read"):
        model.final_hidden([4], [model.new_state()])


def test_the_second_model_shares_the_matrices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(path, kernels=True)
    monkeypatch.setattr(kernels, "empty_matrix", lambda *_, **__: pytest.fail("a new matrix"))
    model.final_hidden([4], [model.new_state()])
    monkeypatch.setattr(HiddenModel, "read", lambda *_: pytest.fail("a third model"))
    model.final_hidden([4], [model.new_state()])
