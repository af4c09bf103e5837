"""Where the kernels are not built, old, or turned off; and what is refused before it gets there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rwkv_core import kernels
from rwkv_core.errors import OptionError
from rwkv_core.kernels import sources
from rwkv_core.loading import load_model
from rwkv_core.state import State
from rwkv_core.torch_executor import TorchExecutor
from tests.core.test_loading import write_tokenizer
from tests.tools.native import require_kernels
from tests.tools.random_checkpoint import TINY, random_tensors, write_pth


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test looks for the kernels anew."""
    monkeypatch.delenv("ANSER_KERNELS", raising=False)
    kernels._extension.cache_clear()
    yield
    kernels._extension.cache_clear()


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(kernels, "importlib", SimpleNamespace(import_module=fail))


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    write_pth(tmp_path / "model.pth", random_tensors(TINY))
    return tmp_path / "model.pth"


@pytest.mark.usefixtures("not_built")
def test_without_kernels_pytorch_runs_the_model_with_one_warning(
    model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            model = load_model(model_path)
            assert isinstance(model.executor, TorchExecutor)
            assert model.forward([1, 2, 3])[0].isfinite().all()
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("kernels are not built (No module named '_rwkv_kernels'):")
    assert "install a C++ compiler and run pip install again" in line
    assert "\n" not in line
    assert (kernels.native(), kernels.isa(), kernels.num_threads()) == (None, None, None)
    with pytest.raises(OptionError, match="the kernels are not built, or turned off"):
        load_model(model_path, kernels=True)
    with pytest.raises(RuntimeError, match="not built"):
        kernels.empty_matrix("F32", 16, 32)


def test_they_can_be_turned_off_without_a_warning(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ANSER_KERNELS", "off")
    with caplog.at_level(logging.WARNING):
        assert isinstance(load_model(model_path).executor, TorchExecutor)
        assert isinstance(load_model(model_path, kernels=False).executor, TorchExecutor)
    assert not caplog.records
    with pytest.raises(OptionError, match="turned off"):
        load_model(model_path, kernels=True)


def test_kernels_of_other_sources_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.cpp").write_text("int main() {}")
    extension = SimpleNamespace(SOURCE_HASH="another")
    fake = SimpleNamespace(import_module=lambda name: extension)
    monkeypatch.setattr(kernels, "importlib", fake)
    monkeypatch.setattr(kernels, "_SOURCES", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert kernels.native() is extension
        assert kernels.native() is extension
    assert [record.getMessage() for record in caplog.records] == [
        "kernels were built from other sources than these; run pip install again"
    ]
    caplog.clear()
    kernels._extension.cache_clear()
    extension.SOURCE_HASH = str(sources.source_hash(tmp_path))
    assert kernels.native() is extension
    kernels._extension.cache_clear()
    monkeypatch.setattr(kernels, "_SOURCES", tmp_path / "not there, as in an installed package")
    assert kernels.native() is extension
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": torch.float32}, "compute with weights as they are stored, not as torch.float32"),
        ({"device": "meta"}, "run on a CPU, not on meta"),
    ],
)
def test_what_they_cannot_do_is_an_error_where_they_must(
    model_path: Path, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(OptionError, match=problem):
        load_model(model_path, kernels=True, **options)  # type: ignore[arg-type]


def test_arrays_that_do_not_fit_are_refused() -> None:
    require_kernels()
    raw = np.zeros(64 * 34, np.uint8)
    matrix = kernels.pack("Q8_0", raw, 64, 32)
    with pytest.raises(ValueError, match="no 64 x 64 Q8_0 values"):
        kernels.pack("Q8_0", raw, 64, 64)
    for wrong in (raw[:-1], raw[::2], raw.view(np.int8), raw.reshape(64, 34)):
        with pytest.raises(ValueError, match="no whole rows"):
            kernels.fill(matrix, "Q8_0", 0, wrong)  # type: ignore[arg-type]
    for first_row in (-128, 1, 128):
        with pytest.raises(ValueError, match=f"64 rows from {first_row} on, of 64"):
            kernels.fill(matrix, "Q8_0", first_row, raw)
    for x in (torch.ones(1, 31), torch.ones(32), torch.ones(1, 32, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"the kernels multiply|rows of 31"):
            kernels.matmul(matrix, x)
    assert kernels.matmul(matrix, torch.ones(0, 32)).shape == (0, 64)


def test_states_that_do_not_fit_are_refused() -> None:
    good = State.zeros(TINY)
    for state in (
        State(good.time_shift.double(), good.channel_shift, good.wkv),
        State(good.time_shift, good.channel_shift.to("meta"), good.wkv),
        State(good.time_shift, good.channel_shift, good.wkv.transpose(-1, -2)),
    ):
        with pytest.raises(ValueError, match="contiguous float32 on the CPU"):
            _ = state.addresses
    wide = State.zeros(TINY, 3)
    second = wide.split()[1]
    address, step, *_ = second.addresses
    assert address == wide.time_shift.data_ptr() + 4 * TINY.n_embd
    assert step == 3 * TINY.n_embd
