"""Measures one model's speed and memory, inside the measuring process.

As llama-bench does it: random tokens, a prompt in one go and then tokens one by one, each from an
empty state, nothing sampled. Logits of the last token are always computed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rwkv_core.bench import served
from rwkv_core.bench.machine import peak_memory_bytes, resident_bytes
from rwkv_core.bench.options import SHORT_TEXT_TOKENS, SpeedOptions
from rwkv_core.bench.process import Progress
from rwkv_core.bench.results import Finished, Loaded, LongPoint, Repetition
from rwkv_core.checkpoint import Checkpoint, open_checkpoint
from rwkv_core.executor import Segment
from rwkv_core.formulas import is_matrix
from rwkv_core.loading import load_model
from rwkv_core.memory import available_bytes
from rwkv_core.model import Model
from rwkv_core.state import State

# Tokens between two lines of progress while a long text is read.
_LONG_CHUNK = 512
# Tokens decoded before each measurement, so that threads and caches are awake.
_WARM_UP_TOKENS = 2
# Far beyond any cache, and at most this share of the memory that is free.
_BANDWIDTH_BYTES = 1 << 30
_BANDWIDTH_SHARE = 4


class SpeedTask:
    """Call `load`, then `repeat` as often as wanted, then `long` if it is, then `finish`."""

    def __init__(self, path: str, options: SpeedOptions, progress: Progress) -> None:
        self._path = path
        self._options = options
        self._progress = progress
        self._model: Model | None = None
        self._random = random.Random(0)
        self._num_repeated = 0
        self._num_zeros = self._num_channels = 0

    @property
    def calls(self) -> Mapping[str, Callable[[], Any]]:
        return {
            "load": lambda: asdict(self.load()),
            "repeat": lambda: asdict(self.repeat()),
            "long": lambda: [asdict(point) for point in self.long()],
            "finish": lambda: asdict(self.finish()),
        }

    def load(self) -> Loaded:
        """Loads the model and warms it up with a repetition that does not count."""
        self._progress("loading")
        start = time.perf_counter()
        self._model = model = load_model(self._path)
        load_s = time.perf_counter() - start
        model.advance(self._tokens(model, 1), model.new_state())
        first_token_s = time.perf_counter() - start
        memory = resident_bytes()
        self._progress("warming up")
        self._prefill_s(model)
        self._token_s(model, model.new_state(), _WARM_UP_TOKENS)
        self._batch_step_s(model, _WARM_UP_TOKENS)
        with closing(open_checkpoint(self._path)) as checkpoint:
            return Loaded(
                load_s=load_s,
                first_token_s=first_token_s,
                memory_bytes=memory,
                type_name=main_type(checkpoint),
                num_parameters=model.num_parameters,
                file_bytes=_file_bytes(checkpoint),
                decode_weight_bytes=served.decode_weight_bytes(model, checkpoint),
                num_threads=served.num_threads(model),
                isa=served.isa(model),
                num_layers=model.config.n_layer,
                num_skipping_layers=served.num_skipping_layers(model),
            )

    def repeat(self) -> Repetition:
        """One round of every measurement."""
        model, options = self._loaded(), self._options
        self._num_repeated += 1
        count = f"{self._num_repeated} of {options.num_repetitions}"
        self._warm_up(model)
        self._progress(f"prefill {count}")
        prefill_s = self._prefill_s(model)
        self._progress(f"decode {count}")
        token_s = self._counted_token_s(model)
        if options.batch_size:
            self._progress(f"{options.batch_size} sequences at once, {count}")
        return Repetition(prefill_s, token_s, self._batch_step_s(model, options.num_decode_tokens))

    def long(self) -> list[LongPoint]:
        """Decoding after a short and after a long text.

        Token by token in turns, so that whatever else the machine does slows both down alike.
        """
        model, options = self._loaded(), self._options
        assert options.num_long_tokens is not None
        num_tokens = options.num_decode_tokens
        short = model.new_state()
        self._read(model, short, 0, SHORT_TEXT_TOKENS)
        long = short.clone()
        self._token_s(model, short.clone(), num_tokens)
        short_memory = resident_bytes()
        self._read(model, long, SHORT_TEXT_TOKENS, options.num_long_tokens)
        self._token_s(model, long.clone(), num_tokens)
        long_memory = resident_bytes()
        short_s: list[list[float]] = []
        long_s: list[list[float]] = []
        for index in range(options.num_repetitions):
            self._progress(
                f"decode after {SHORT_TEXT_TOKENS} and after {options.num_long_tokens} tokens, "
                f"{index + 1} of {options.num_repetitions}"
            )
            states = short.clone(), long.clone()
            turns = [self._token_s(model, states[turn % 2], 1) for turn in range(2 * num_tokens)]
            short_s.append([seconds for (seconds,) in turns[::2]])
            long_s.append([seconds for (seconds,) in turns[1::2]])
        return [
            LongPoint(SHORT_TEXT_TOKENS, short_s, short_memory),
            LongPoint(options.num_long_tokens, long_s, long_memory),
        ]

    def finish(self) -> Finished:
        """Takes the model out of memory to make room for measuring the memory itself."""
        peak = peak_memory_bytes()
        zeros = self._num_zeros / self._num_channels if self._num_channels else None
        self._model = None
        self._progress("measuring the memory's speed")
        num_bytes = min(
            _BANDWIDTH_BYTES, (available_bytes() or _BANDWIDTH_BYTES) // _BANDWIDTH_SHARE
        )
        return Finished(peak, zeros, served.read_bandwidth(num_bytes))

    def _loaded(self) -> Model:
        assert self._model is not None
        return self._model

    def _warm_up(self, model: Model) -> None:
        self._token_s(model, model.new_state(), _WARM_UP_TOKENS)

    def _prefill_s(self, model: Model) -> float:
        tokens, state = self._tokens(model, self._options.num_prompt_tokens), model.new_state()
        start = time.perf_counter()
        model.advance(tokens, state)
        return time.perf_counter() - start

    def _token_s(self, model: Model, state: State, num_tokens: int) -> list[float]:
        """Seconds of each token decoded after `state`, which changes."""
        times = [time.perf_counter()]
        for token in self._tokens(model, num_tokens):
            model.advance([token], state)
            times.append(time.perf_counter())
        return _differences(times)

    def _counted_token_s(self, model: Model) -> list[float]:
        """Decodes from an empty state, and counts the zero channels while it does."""
        served.reset_counters(model)
        result = self._token_s(model, model.new_state(), self._options.num_decode_tokens)
        num_zeros, num_channels = served.zero_channels(model)
        self._num_zeros += num_zeros
        self._num_channels += num_channels
        return result

    def _batch_step_s(self, model: Model, num_steps: int) -> list[float]:
        """Seconds of each step in which every sequence of the batch reads a token; [] without."""
        size = self._options.batch_size
        if size is None:
            return []
        states = [model.new_state() for _ in range(size)]
        times = [time.perf_counter()]
        for _ in range(num_steps):
            tokens = torch.tensor(self._tokens(model, size)).view(size, 1)
            model.advance_batch([Segment(*pair) for pair in zip(tokens, states, strict=True)])
            times.append(time.perf_counter())
        return _differences(times)

    def _read(self, model: Model, state: State, num_read: int, num_tokens: int) -> None:
        """Goes on with the text of `state` from `num_read` to `num_tokens` tokens."""
        while num_read < num_tokens:
            self._progress(f"reading a long text, {num_read} of {num_tokens} tokens")
            count = min(_LONG_CHUNK, num_tokens - num_read)
            model.advance(self._tokens(model, count), state)
            num_read += count

    def _tokens(self, model: Model, count: int) -> list[int]:
        return self._random.choices(range(model.config.vocab_size), k=count)


def main_type(checkpoint: Checkpoint) -> str:
    """The type that most bytes of the matrices are stored in: "Q8_0", "BF16"."""
    nbytes: dict[str, int] = {}
    for name, info in checkpoint.tensors.items():
        if is_matrix(name):
            nbytes[info.type_name] = nbytes.get(info.type_name, 0) + info.nbytes
    return max(nbytes, key=lambda type_name: nbytes[type_name])


def _file_bytes(checkpoint: Checkpoint) -> int:
    """Of the file; of the tensors where they lie in several."""
    path = Path(checkpoint.path)
    if path.is_file():
        return os.path.getsize(path)
    return sum(info.nbytes for info in checkpoint.tensors.values())


def _differences(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]
