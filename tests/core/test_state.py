"""The size of a state, known from the model's sizes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rwkv_core.config import ModelConfig
from rwkv_core.state import State
from tests.tools.random_checkpoint import TINY


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, n_layer=1),
        replace(TINY, n_layer=7, n_embd=192, head_size=64),
        replace(TINY, n_embd=96, head_size=32),
    ],
)
def test_its_size_is_that_of_a_state_that_is_made(config: ModelConfig) -> None:
    assert State.nbytes_of(config) == State.zeros(config).nbytes
