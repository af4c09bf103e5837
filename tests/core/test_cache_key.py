"""Whose states they are: everything that could change a bit changes the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from rwkv_core.cache import ModelKey, Numerics
from rwkv_core.executor import NUM_TORCH_THREADS
from rwkv_core.formulas import Weights
from rwkv_core.state import State
from rwkv_core.tokenizer import WorldTokenizer
from rwkv_core.torch_executor import TorchExecutor
from tests.tools.random_checkpoint import TINY, random_tensors

WEIGHTS = "sha256:" + "0" * 64
NUMERICS = Numerics("kernels", "avx512", "Q8_0", "1")


@dataclass(frozen=True)
class Letters:
    """A tokenizer whose every token is a letter."""

    letters: str = "abc"
    eos_token_ids: frozenset[int] = frozenset({0})

    @property
    def vocab_size(self) -> int:
        return len(self.letters)

    def token_bytes(self, token_id: int) -> bytes:
        return self.letters[token_id].encode()

    def encode(self, text: str) -> list[int]:
        return [self.letters.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.letters[token_id] for token_id in ids)


def a_state() -> State:
    state = State.zeros(TINY)
    state.wkv[0, 0, 0, 0, 0] = 1
    return state


KEY = ModelKey.of(WEIGHTS, Letters(), None, NUMERICS)


def test_equal_models_have_equal_keys() -> None:
    assert ModelKey.of(WEIGHTS, Letters(), None, NUMERICS) == KEY
    assert ModelKey.of(WEIGHTS, Letters(), None, NUMERICS).hex == KEY.hex
    tuned = ModelKey.of(WEIGHTS, Letters(), a_state(), NUMERICS)
    assert tuned == ModelKey.of(WEIGHTS, Letters(), a_state(), NUMERICS)


@pytest.mark.parametrize(
    "other",
    [
        ModelKey.of("sha256:" + "1" * 64, Letters(), None, NUMERICS),
        ModelKey.of(WEIGHTS, Letters("abd"), None, NUMERICS),
        ModelKey.of(WEIGHTS, Letters("abcd"), None, NUMERICS),
        ModelKey.of(WEIGHTS, Letters(eos_token_ids=frozenset()), None, NUMERICS),
        ModelKey.of(WEIGHTS, WorldTokenizer.world(), None, NUMERICS),
        ModelKey.of(WEIGHTS, Letters(), State.zeros(TINY), NUMERICS),
        ModelKey.of(WEIGHTS, Letters(), a_state(), NUMERICS),
    ],
)
def test_another_model(other: ModelKey) -> None:
    assert other.model != KEY.model
    assert other.numerics == KEY.numerics
    assert other.hex != KEY.hex


@pytest.mark.parametrize(
    "numerics",
    [
        replace(NUMERICS, executor="torch"),
        replace(NUMERICS, instruction_set="avx2"),
        replace(NUMERICS, type_name="F16"),
        replace(NUMERICS, version="2"),
    ],
)
def test_other_numerics(numerics: Numerics) -> None:
    other = ModelKey.of(WEIGHTS, Letters(), None, numerics)
    assert other.model == KEY.model
    assert other.numerics != KEY.numerics
    assert other.hex != KEY.hex


def test_one_part_cannot_be_taken_for_another() -> None:
    one = Numerics("torch", "a", "b", "")
    other = Numerics("torch", "a b", "", "")
    keys = [ModelKey.of(WEIGHTS, Letters(), None, each) for each in (one, other)]
    assert keys[0].hex != keys[1].hex


def test_numerics_of_pytorch() -> None:
    weights = Weights.load(TINY, random_tensors(TINY).__getitem__)
    numerics = Numerics.of(TorchExecutor(TINY, weights))
    assert numerics.executor == "torch"
    assert numerics.type_name == "F32"
    assert numerics.version == torch.__version__
    assert f"{NUM_TORCH_THREADS} threads" in numerics.instruction_set
