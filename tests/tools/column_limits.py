"""Measures up to which share of active channels a layer is faster with its value matrix by columns.

    python -m tests.tools.column_limits Q8_0 Q4_K

One line for each type: the time of a decoded token by columns / by rows, for several shares of
active channels, and the share where both take equally long. Layers have the shape of a 1.5B model's
and a value matrix of their own, together more than caches hold; the other matrices all layers have
in common. Both models decode in turns. For `rwkv_core.zero_channels`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from rwkv_core import kernels
from rwkv_core.checkpoint.architecture import required_names, tensor_shapes
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.checkpoint.ggml_quantize import quantize_blocks
from rwkv_core.checkpoint.names import block_leaf
from rwkv_core.config import ModelConfig
from rwkv_core.formulas import is_matrix
from rwkv_core.kernel_executor import FFN_VALUE
from rwkv_core.kernels.interface import Floats, NativeMatrix, NativeModel
from rwkv_core.state import State
from tests.tools.random_checkpoint import make_few_active, random_tensors

_VALUE_BYTES = 256 << 20
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_NUM_ROUNDS = 7
_NUM_TOKENS = 3  # in a turn
_OTHER_TYPE = "Q8_0"


def _config(n_layer: int) -> ModelConfig:
    return ModelConfig(
        n_layer=n_layer,
        n_embd=2048,
        head_size=64,
        vocab_size=64,
        n_ffn=8192,
        decay_rank=32,
        iclr_rank=32,
        value_rank=32,
        gate_rank=32,
    )


def _packed(values: Floats) -> NativeMatrix:
    return kernels.pack(
        _OTHER_TYPE, quantize_blocks(_OTHER_TYPE, values.reshape(-1)), *values.shape
    )


class Decoder:
    """A model whose layers are copies of one, but for value matrices of zeros of the given type."""

    def __init__(self, type_name: str, n_layer: int, *, by_columns: bool) -> None:
        self._config = config = _config(n_layer)
        native = kernels.native()
        assert native is not None
        self._model: NativeModel = native.Model(
            *(n_layer, config.n_embd, config.head_size, config.n_ffn, config.vocab_size),
            *(config.layer_norm_eps, config.group_norm_eps),
        )
        raw = np.zeros(LAYOUTS[type_name].num_bytes(config.n_embd * config.n_ffn), np.uint8)
        self._load(type_name, raw, by_columns)
        self._state = State.zeros(config)

    def _load(self, type_name: str, raw: np.typing.NDArray[np.uint8], by_columns: bool) -> None:
        config, model = self._config, self._model
        tensors = random_tensors(_config(2))
        make_few_active(tensors, 1, 0)
        shapes, packed = tensor_shapes(config), dict[str, NativeMatrix]()
        for name in required_names(config.n_layer):
            place = block_leaf(name)
            one = f"blocks.1.{place[1]}" if place else name
            if one not in tensors:  # the norm that layer 0 alone has
                one = name
            values = tensors[one].numpy()
            if name == "emb.weight":
                model.set_embedding(LAYOUTS["F32"].type_id, values.reshape(-1).view(np.uint8))
            elif name.endswith("ffn.value.weight"):
                size = shapes[name]
                slices = kernels.num_slices(type_name, size[1])
                matrix = kernels.pack(type_name, raw, *size, by_columns=by_columns, slices=slices)
                model.set_matrix(name, matrix)
            elif is_matrix(name):
                if one not in packed:
                    is_low_rank = not name.endswith(".weight")
                    packed[one] = _packed(np.ascontiguousarray(values.T if is_low_rank else values))
                model.set_matrix(name, packed[one])
            else:
                model.set_vector(name, values.reshape(-1))
        model.finish()

    def use_key(self, key: NativeMatrix) -> None:
        for layer in range(self._config.n_layer):
            self._model.replace_matrix(f"blocks.{layer}.ffn.key.weight", key)

    def token_s(self) -> float:
        tokens = np.random.default_rng(0).integers(64, size=(_NUM_TOKENS, 1), dtype=np.int32)
        starts, rows, out = np.array([0, 1], np.int32), np.array([0], np.int32), torch.empty(1, 64)
        start = time.perf_counter()
        for token in tokens:
            kernels.forward(self._model, token, starts, [self._state], rows, out)
        return (time.perf_counter() - start) / _NUM_TOKENS

    def active_share(self) -> float:
        self._model.reset_counters()
        self.token_s()
        zeros, num_channels = self._model.zero_channels()
        return 1 - sum(zeros) / num_channels / len(zeros)


def keys() -> list[NativeMatrix]:
    """Key matrices with which these shares of the channels are active."""
    normal, found = statistics.NormalDist(), []
    for share in _SHARES:
        tensors = random_tensors(_config(2))
        make_few_active(tensors, 1, normal.inv_cdf(1 - share))
        found.append(_packed(tensors["blocks.1.ffn.key.weight"].numpy()))
    return found


def measure(type_name: str, all_keys: Sequence[NativeMatrix]) -> tuple[list[float], list[float]]:
    """For each key: the share that was active, and a token's time by columns / by rows."""
    shape = tensor_shapes(_config(1))[FFN_VALUE.format(layer=0)]
    n_layer = -(-_VALUE_BYTES // LAYOUTS[type_name].num_bytes(math.prod(shape)))
    by_columns, by_rows = (Decoder(type_name, n_layer, by_columns=which) for which in (True, False))
    active, ratios = [], []
    for key in all_keys:
        for decoder in (by_columns, by_rows):
            decoder.use_key(key)
        active.append(by_columns.active_share())
        by_rows.token_s()
        rounds = [by_columns.token_s() / by_rows.token_s() for _ in range(_NUM_ROUNDS)]
        ratios.append(statistics.median(rounds))
    return active, ratios


def equal_share(active: Sequence[float], ratios: Sequence[float]) -> float:
    """Where the ratio reaches 1, between the shares by a straight line."""
    if ratios[0] >= 1:
        return 0.0
    for (low, low_ratio), (high, high_ratio) in pairwise(zip(active, ratios, strict=True)):
        if high_ratio >= 1:
            return low + (high - low) * (1 - low_ratio) / (high_ratio - low_ratio)
    return active[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", default=list(LAYOUTS), metavar="TYPE")
    all_keys = keys()
    for index, type_name in enumerate(parser.parse_args().types):
        active, ratios = measure(type_name, all_keys)
        if index == 0:
            print("active", *(f"{share:6.0%}" for share in active), " equal", flush=True)
        equal = equal_share(active, ratios)
        print(f"{type_name:6}", *(f"{ratio:6.2f}" for ratio in ratios), f"{equal:6.0%}", flush=True)


if __name__ == "__main__":
    main()
