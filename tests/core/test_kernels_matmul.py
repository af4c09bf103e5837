"""Matrix products with packed weights against their decoded values, in double precision."""

from __future__ import annotations

import platform

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from rwkv_core import kernels
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, dequantize
from rwkv_core.checkpoint.ggml_quantize import quantize_blocks
from rwkv_core.kernels.interface import Native
from tests.tools.native import require_kernels

Bytes = npt.NDArray[np.uint8]

# Rows that fill panels and that do not; by columns they come in groups of 64.
ROWS = {False: (1, 15, 16, 17, 130), True: (64, 192)}
LENGTHS = (1, 2, 15, 17, 70)  # 15: all steps of tokens that are multiplied at once


def encoded(type_name: str, values: npt.NDArray[np.float32]) -> Bytes:
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if type_name in plain:
        tensor = torch.from_numpy(values).to(plain[type_name]).contiguous()
        return tensor.view(torch.uint8).numpy().reshape(-1)
    return quantize_blocks(type_name, values).reshape(-1)


def product(
    type_name: str, packed: Bytes, rows: int, x: Tensor, by_columns: bool, slices: int = 1
) -> Tensor:
    matrix = kernels.pack(type_name, packed, rows, x.shape[1], by_columns=by_columns, slices=slices)
    return kernels.matmul(matrix, x)


def reference(type_name: str, packed: Bytes, rows: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The product of what the kernels see, and the sum of its terms' magnitudes: [T, rows] each."""
    weights = torch.from_numpy(dequantize(type_name, packed)).double().view(rows, -1)
    seen = as_quantized(x) if LAYOUTS[type_name].is_quantized else x.double()
    return seen @ weights.t(), seen.abs() @ weights.abs().t()


def as_quantized(x: Tensor) -> Tensor:
    """Rows as blocks of 32 integers and a float32 scale hold them."""
    blocks = x.view(x.shape[0], -1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 127 / (blocks.abs().amax(-1, keepdim=True)), 0)
    return ((blocks * inverse).round().double() * scale.double()).view(x.shape)


QUANTIZED = [name for name in LAYOUTS if LAYOUTS[name].is_quantized]
LAID_OUT = [(name, False) for name in LAYOUTS] + [(name, True) for name in QUANTIZED]


@pytest.mark.parametrize(("type_name", "by_columns"), LAID_OUT)
def test_products_are_those_of_the_decoded_weights(
    native: Native, type_name: str, by_columns: bool
) -> None:
    rng = np.random.default_rng(3)
    cols = 2 * max(32, LAYOUTS[type_name].values_per_block)
    for rows in ROWS[by_columns]:
        packed = encoded(type_name, rng.standard_normal((rows, cols), np.float32))
        for length in LENGTHS:
            x = torch.from_numpy(rng.standard_normal((length, cols), np.float32))
            x[:, ::3] = 0  # what by columns is not read
            expected, magnitude = reference(type_name, packed, rows, x)
            got = product(type_name, packed, rows, x, by_columns)
            assert ((got - expected).abs() <= 1e-6 * magnitude).all(), (rows, length)


@pytest.mark.parametrize(("type_name", "by_columns"), LAID_OUT)
def test_company_changes_no_bit(native: Native, type_name: str, by_columns: bool) -> None:
    rng = np.random.default_rng(4)
    packed = encoded(type_name, rng.standard_normal((64, 512), np.float32))
    x = torch.from_numpy(rng.standard_normal((70, 512), np.float32)).relu().square()
    together = product(type_name, packed, 64, x, by_columns)
    for row in (0, 33, 69):
        assert torch.equal(
            product(type_name, packed, 64, x[row : row + 1], by_columns)[0], together[row]
        )


@pytest.mark.parametrize("type_name", QUANTIZED)
def test_both_layouts_give_the_same_bits(native: Native, type_name: str) -> None:
    rng = np.random.default_rng(6)
    for rows, cols, slices in ((64, 256, 1), (192, 2304, 4), (4224, 512, 2)):  # one part, and two
        packed = encoded(type_name, rng.standard_normal((rows, cols), np.float32))
        for length in (1, 2, 16, 17, 70):
            x = torch.from_numpy(rng.standard_normal((length, cols), np.float32)).relu().square()
            x[:, 32:96] = 0  # blocks that are not read at all
            by_rows = product(type_name, packed, rows, x, False, slices)
            assert torch.equal(product(type_name, packed, rows, x, True, slices), by_rows), length


def test_slices_that_cannot_be_are_refused(native: Native) -> None:
    for type_name, cols, slices in (("Q8_0", 64, 3), ("Q8_0", 64, 0), ("F16", 64, 2)):
        with pytest.raises(ValueError, match=f"slices, not {slices}"):
            kernels.empty_matrix(type_name, 64, cols, slices=slices)
    with pytest.raises(ValueError, match="quantized"):
        kernels.empty_matrix("F16", 64, 64, by_columns=True)
    assert kernels.num_slices("Q8_0", 3072) == 6
    assert kernels.num_slices("Q4_K", 512) == 1
    assert kernels.num_slices("F16", 8192) == 1


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_zero_blocks_and_denormals(native: Native, type_name: str) -> None:
    rng = np.random.default_rng(5)
    cols = 2 * max(32, LAYOUTS[type_name].values_per_block)
    weights = rng.standard_normal((16, cols), np.float32)
    weights[:, : cols // 2] = 0
    weights[8:] *= 1e-7  # scales below float16's normal numbers
    packed = encoded(type_name, weights)
    x = torch.from_numpy(rng.standard_normal((3, cols), np.float32))
    x[1] = 0
    x[2] *= 1e-38  # denormal activations count as zero where they are quantized
    expected, magnitude = reference(type_name, packed, 16, x[:1])
    got = product(type_name, packed, 16, x, False)
    assert ((got[:1] - expected).abs() <= 1e-6 * magnitude).all()
    assert got[1].eq(0).all()
    assert got[2].abs().max() < 1e-35


@pytest.mark.parametrize("type_name", LAYOUTS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden(native: Native, type_name: str, value: float) -> None:
    cols = 2 * max(32, LAYOUTS[type_name].values_per_block)
    packed = encoded(type_name, np.ones((16, cols), np.float32))
    x = torch.ones(2, cols)
    x[1, 5] = value
    got = product(type_name, packed, 16, x, False)
    assert got[0].isfinite().all()
    assert not got[1].isfinite().any()


@pytest.mark.parametrize("type_name", QUANTIZED)
def test_an_infinite_scale_is_not_hidden(native: Native, type_name: str) -> None:
    cols = 2 * LAYOUTS[type_name].values_per_block
    packed = encoded(type_name, np.ones((16, cols), np.float32)).copy()
    place = 208 if type_name == "Q6_K" else 0  # of a block's d
    packed[place : place + 2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    got = product(type_name, packed, 16, torch.ones(1, cols), False)
    assert not got[0, 0].isfinite()
    assert got[0, 1:].isfinite().all()


@pytest.mark.parametrize("type_name", QUANTIZED)
def test_instruction_sets_that_fuse_give_the_same_bits(type_name: str) -> None:
    """Every set rounds a product and its sum once, except "portable" on x86-64."""
    extension = require_kernels()
    before = extension.isa()
    fusing = [name for name in extension.supported_isas() if name != "portable"]
    if platform.machine() == "aarch64":
        fusing.append("portable")
    rng = np.random.default_rng(8)
    packed = encoded(type_name, rng.standard_normal((64, 512), np.float32))
    x = torch.from_numpy(rng.standard_normal((5, 512), np.float32))
    try:
        for by_columns in (False, True):
            results = []
            for name in fusing:
                extension.set_isa(name)
                results.append(product(type_name, packed, 64, x, by_columns))
            assert all(torch.equal(result, results[0]) for result in results[1:])
    finally:
        extension.set_isa(before)
