"""Speed measured on the demo model, in this process and in one of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pytest

from rwkv_core import kernels
from rwkv_core.bench.options import BenchError, Runtime, SpeedOptions
from rwkv_core.bench.process import MeasuringProcess
from rwkv_core.bench.results import Repetition
from rwkv_core.bench.speed import SpeedTask
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.kernel_executor import KernelExecutor
from rwkv_core.loading import load_model

TINY = SpeedOptions(
    num_prompt_tokens=5,
    num_decode_tokens=3,
    num_repetitions=2,
    batch_size=2,
    num_long_tokens=150,
)
ONE_THREAD = Runtime(num_threads=1)


@dataclass
class Heard:
    shown: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def show(self, text: str) -> None:
        self.shown.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def process(heard: Heard) -> Iterator[MeasuringProcess]:
    arguments = {"path": str(EMBEDDED), "options": asdict(TINY)}
    with MeasuringProcess("speed", arguments, ONE_THREAD, heard) as measuring:
        yield measuring


def test_every_number_is_positive_and_consistent() -> None:
    heard = Heard()
    task = SpeedTask(str(EMBEDDED), TINY, heard.show)
    loaded = task.load()
    repetitions = [task.repeat() for _ in range(TINY.num_repetitions)]
    long = task.long()
    finished = task.finish()

    assert loaded.type_name == "Q8_0"
    assert loaded.file_bytes == EMBEDDED.stat().st_size
    assert 0 < loaded.decode_weight_bytes < loaded.file_bytes
    assert 0 < loaded.load_s < loaded.first_token_s
    assert loaded.num_threads >= 1
    for repetition in repetitions:
        assert repetition.prefill_s > 0
        assert len(repetition.token_s) == TINY.num_decode_tokens
        assert len(repetition.batch_step_s) == TINY.num_decode_tokens
        assert min(repetition.token_s + repetition.batch_step_s) > 0
    assert [point.num_tokens for point in long] == [100, 150]
    for point in long:
        assert [len(each) for each in point.token_s] == [TINY.num_decode_tokens] * 2
    assert finished.peak_memory_bytes >= (loaded.memory_bytes or 0) > loaded.decode_weight_bytes
    if kernels.native() is None:
        assert loaded.isa.startswith("PyTorch")
        assert finished.zero_channel_share is None
        assert loaded.num_skipping_layers == 0
        assert finished.read_bytes_per_s is None
    else:
        # Packed weights stay packed; all but the embedding are read.
        assert loaded.decode_weight_bytes < loaded.file_bytes
        assert finished.zero_channel_share is not None
        assert 0 < finished.zero_channel_share < 1
        executor = load_model(EMBEDDED).executor
        assert isinstance(executor, KernelExecutor)
        assert loaded.num_skipping_layers == len(executor.layers_by_columns)
        assert 0 < loaded.num_skipping_layers <= loaded.num_layers
        assert finished.read_bytes_per_s is not None
        assert finished.read_bytes_per_s > 1e8
    assert heard.shown[0] == "loading"
    assert "decode 2 of 2" in heard.shown


def test_a_process_of_its_own_measures_the_same_things(
    process: MeasuringProcess, heard: Heard
) -> None:
    assert process.call("load")["num_threads"] == 1
    repetition = Repetition(**process.call("repeat"))
    assert len(repetition.token_s) == TINY.num_decode_tokens
    assert heard.shown[:2] == ["loading", "warming up"]
    assert heard.warnings or kernels.native() is not None


def test_an_error_of_the_measuring_process_is_one_line(heard: Heard) -> None:
    arguments = {"path": os.devnull, "options": asdict(TINY)}
    with MeasuringProcess("speed", arguments, ONE_THREAD, heard) as measuring:
        with pytest.raises(BenchError) as caught:
            measuring.call("load")
        assert str(caught.value) == f"{os.devnull}: is not a regular file"


def test_a_process_that_is_killed_says_so(heard: Heard) -> None:
    arguments = {"path": str(EMBEDDED), "options": asdict(TINY)}
    with MeasuringProcess("speed", arguments, ONE_THREAD, heard) as measuring:
        os.kill(measuring.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match="was killed, as systems do when memory runs out"):
            measuring.call("load")


def test_its_end_is_ours(heard: Heard) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        MeasuringProcess("speed", {"path": "x", "options": {}}, ONE_THREAD, heard) as measuring,
    ):
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(measuring.pid, 0)
