"""Our logits against those of the authors' runtime, on random checkpoints of real shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_core.checkpoint import open_checkpoint, read_config
from rwkv_core.formulas import Weights
from rwkv_core.model import Model
from rwkv_core.tokenizer import WorldTokenizer
from rwkv_core.torch_executor import TorchExecutor
from tests.tools.oracle import OracleLogits, Reading, oracle_logits
from tests.tools.random_checkpoint import PRESETS, random_tensors, write_pth

# Of the logits' standard deviation. What is measured is near 1e-5, the noise of float32.
TOLERANCE = 1e-3

NUM_TOKENS = 64

SHAPES = {
    "three layers of 0.1B": replace(PRESETS["0.1B"], n_layer=3, vocab_size=8192),
    "two layers of 0.4B": replace(PRESETS["0.4B"], n_layer=2, vocab_size=4096),
    "all layers of 0.1B": replace(PRESETS["0.1B"], vocab_size=8192),
}


# Tokens read one by one at the end. One costs a model as much memory traffic as all 64 at once.
NUM_SINGLE = {"three layers of 0.1B": NUM_TOKENS, "two layers of 0.4B": 8, "all layers of 0.1B": 4}


@dataclass(frozen=True)
class Case:
    reading: Reading
    expected: OracleLogits


def _load(path: Path) -> Model:
    """In float32, as the oracle computes."""
    with closing(open_checkpoint(path)) as checkpoint:
        config = read_config(checkpoint)
        weights = Weights.load(config, lambda name: checkpoint.read(name).float())
        return Model(config, TorchExecutor(config, weights), WorldTokenizer.world())


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    readings = {}
    folder = tmp_path_factory.mktemp("oracle")
    for name, config in SHAPES.items():
        path = folder / f"{name}.pth"
        write_pth(path, random_tensors(config, seed=len(name), dtype=torch.bfloat16))
        generator = torch.Generator().manual_seed(len(name))
        tokens = torch.randint(config.vocab_size, (NUM_TOKENS,), generator=generator).tolist()
        readings[name] = Reading(path, tokens, NUM_SINGLE[name])
    expected = oracle_logits(list(readings.values()))
    yield {
        name: Case(reading, logits)
        for (name, reading), logits in zip(readings.items(), expected, strict=True)
    }
    for reading in readings.values():
        reading.path.unlink()


def worst(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in standard deviations of the logits."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.std()).item()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_the_oracle_s(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    reading, expected = case.reading, case.expected
    assert expected.sequence.std().item() == pytest.approx(1, abs=0.2)
    model = _load(reading.path)

    logits, _ = model.forward(reading.tokens, all_logits=True)
    assert worst(logits, expected.sequence) < TOLERANCE

    split = NUM_TOKENS - reading.num_single
    state = model.forward(reading.tokens[:split])[1] if split else None
    for index in range(reading.num_single):
        logits, state = model.forward([reading.tokens[split + index]], state)
        assert worst(logits, expected.single[index]) < TOLERANCE
