"""The kernels, for tests of them: they are skipped only where nobody asks for kernels."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from rwkv_core import kernels
from rwkv_core.kernels.interface import Floats, Int32s, Native

Codes = npt.NDArray[np.int8]


class Operations(Native, Protocol):
    """The extension with what it offers to tests alone: single operations."""

    def layer_norm(
        self, x: Floats, weight: Floats, bias: Floats, eps: float, out: Floats
    ) -> None: ...
    def mix(self, h: Floats, previous: Floats, lerp: Floats, out: Floats) -> None: ...
    def activate(self, name: str, x: Floats) -> int: ...
    def quantize(
        self, x: Floats, codes: Codes, scales: Floats, negated_sums: Int32s, scaled_sums: Floats
    ) -> None: ...
    def pack_active(
        self,
        codes: Codes,
        split_halves: bool,
        active: npt.NDArray[np.uint32],
        packed: Codes,
    ) -> None: ...
    def time_mix(
        self, rows: Floats, vectors: Floats, norm_eps: float, state: Floats, out: Floats
    ) -> None: ...


def require_kernels() -> Native:
    """The extension. Skips the test without it, unless ANSER_REQUIRE_KERNELS is set: then fails."""
    native = kernels.native()
    if native is None:
        if os.environ.get("ANSER_REQUIRE_KERNELS"):
            pytest.fail("ANSER_REQUIRE_KERNELS is set, but the kernels are not built")
        pytest.skip("the kernels are not built")
    return native


def relative(ours: Tensor, expected: Tensor) -> float:
    """The largest difference, in standard deviations of what is expected."""
    assert ours.shape == expected.shape
    return float((ours - expected).abs().max() / expected.std())


def fake_quantized(x: Tensor) -> Tensor:
    """The values that x [..., K] has for a quantized matrix."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    amax = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(amax >= 1e-30, 127 / amax, 0)
    values: Tensor = (blocks * inverse).round() * (amax / 127)
    return values.view(x.shape)
