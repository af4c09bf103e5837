"""Layers in which few channels are active skip the others, and no number changes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkv_core import kernels, zero_channels
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.executor import Segment
from rwkv_core.kernel_executor import KernelExecutor
from rwkv_core.kernels.interface import NativeMatrix
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from tests.core.test_kernel_executor import WIDE, random_tokens, write_gguf
from tests.core.test_loading import write_tokenizer
from tests.tools.native import require_kernels
from tests.tools.random_checkpoint import make_few_active, random_tensors
from tests.tools.states import same

CONFIG = replace(WIDE, n_layer=4)
FEW_ACTIVE = frozenset({1, 3})


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    require_kernels()


def write_model(folder: Path, type_name: str) -> Path:
    """A model with few active channels in the layers FEW_ACTIVE, and half of them in the others."""
    tensors = random_tensors(CONFIG, seed=1)
    for layer in FEW_ACTIVE:
        make_few_active(tensors, layer, 2.2)
    write_tokenizer(folder)
    write_gguf(folder / "a.gguf", tensors, CONFIG, type_name)
    return folder / "a.gguf"


def executor_of(model: Model) -> KernelExecutor:
    assert isinstance(model.executor, KernelExecutor)
    return model.executor


@pytest.fixture(scope="module", params=sorted(zero_channels.MAX_ACTIVE_SHARES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """The same model twice: as it is loaded, and with all of its matrices by rows."""
    path = write_model(tmp_path_factory.mktemp("model"), request.param)
    return [load_model(path, kernels=True, skips_zero_channels=skips) for skips in (True, False)]


def test_layers_with_few_active_channels_skip_the_others(pair: list[Model]) -> None:
    executor, by_rows = map(executor_of, pair)
    assert executor.layers_by_columns == FEW_ACTIVE
    assert executor.description == f"{by_rows.description}, zero channels skipped in 2 of 4 layers"
    assert by_rows.layers_by_columns == frozenset()
    sizes = executor.type_name, CONFIG.n_embd, CONFIG.n_ffn
    by_columns = kernels.empty_matrix(*sizes, by_columns=True)
    assert by_columns.nbytes == kernels.empty_matrix(*sizes).nbytes
    assert executor.num_weight_bytes == by_rows.num_weight_bytes
    assert executor.zero_channels() == (0, 0)  # what was counted to choose is not for others


def test_zero_channels_are_counted_layer_by_layer(pair: list[Model]) -> None:
    for model in pair:
        executor = executor_of(model)
        executor.reset_counters()
        model.forward(random_tokens(100, seed=3))
        shares = executor.active_shares()
        for layer, share in enumerate(shares):
            low, high = (0.002, 0.045) if layer in FEW_ACTIVE else (0.4, 0.6)
            assert low < share < high
        zeros, num_channels = executor.zero_channels()
        assert num_channels == 100 * CONFIG.n_layer * CONFIG.n_ffn
        assert zeros / num_channels == pytest.approx(1 - sum(shares) / CONFIG.n_layer)


@pytest.mark.parametrize("length", [1, 7, 16, 17, 64])
def test_one_text_gives_the_same_bits(pair: list[Model], length: int) -> None:
    text = random_tokens(length, seed=length)
    (logits, state), (expected, expected_state) = (
        model.forward(text, all_logits=True) for model in pair
    )
    assert torch.equal(logits, expected)
    assert same(state, expected_state)
    for token in random_tokens(3):
        assert torch.equal(
            pair[0].advance([token], state), pair[1].advance([token], expected_state)
        )


@pytest.mark.parametrize("lengths", [(1,) * 8, (1, 1, 1, 30, 2)])
def test_batches_give_the_same_bits(pair: list[Model], lengths: tuple[int, ...]) -> None:
    results = []
    for model in pair:
        segments = [
            Segment(torch.tensor(random_tokens(length, seed=index)), model.new_state())
            for index, length in enumerate(lengths)
        ]
        results.append(model.advance_batch(segments, all_logits=True))
    assert torch.equal(*results)


def test_without_memory_the_rest_stays_by_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_model(tmp_path, "Q8_0")
    expected, _ = load_model(path, kernels=True, skips_zero_channels=False).forward([5, 6, 7])
    empty_matrix = kernels.empty_matrix
    num_refused = 0

    def refuse(
        type_name: str, rows: int, cols: int, *, by_columns: bool, slices: int
    ) -> NativeMatrix:
        nonlocal num_refused
        if by_columns:
            num_refused += 1
            raise MemoryError
        return empty_matrix(type_name, rows, cols, slices=slices)

    monkeypatch.setattr(kernels, "empty_matrix", refuse)
    with caplog.at_level(logging.WARNING):
        model = load_model(path, kernels=True)
    assert num_refused == 1
    assert executor_of(model).layers_by_columns == frozenset()
    assert "zero channels" not in executor_of(model).description
    assert "decoding is slower" in caplog.text
    assert torch.equal(model.forward([5, 6, 7])[0], expected)


def test_a_short_text_says_what_long_ones_do() -> None:
    """The layers of the demo model that were chosen are right for a dialogue it was trained on."""
    model = load_model(EMBEDDED, kernels=True)
    executor = executor_of(model)
    text = (
        "User: Hello, who are you?\n\nAssistant: I am a small assistant.\n\n"
        "User: My name is Anna and I live in Rome.\n\nAssistant: Nice to meet you, Anna!"
    )
    model.forward(model.tokenizer.encode(text))
    limit = zero_channels.MAX_ACTIVE_SHARES[executor.type_name]
    shares = executor.active_shares()
    assert executor.layers_by_columns == {
        layer for layer, share in enumerate(shares) if share <= limit
    }
