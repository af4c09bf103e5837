"""Block layouts against the `gguf` package, bit for bit."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from rwkv_core.checkpoint.ggml_blocks import (
    LAYOUTS,
    LAYOUTS_BY_ID,
    UNSUPPORTED_TYPES,
    Bytes,
    Floats,
    dequantize,
)

# Byte offsets of the float16 scales in a block of each type.
SCALE_OFFSETS = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
# Both zeros, the smallest denormal, the largest, the smallest normal, 1, -1, the largest, both
# infinities, NaN.
HALFS = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00],
    np.uint16,
)


def oracle(type_name: str, packed: Bytes) -> Floats:
    layout = LAYOUTS[type_name]
    if type_name == "F32":
        return packed.view(np.float32)
    with np.errstate(all="ignore"):
        rows = packed.reshape(-1, layout.bytes_per_block)
        decoded = gguf.dequantize(rows, gguf.GGMLQuantizationType[type_name])
    return np.asarray(decoded, np.float32).reshape(-1)


def same_bits(left: Floats, right: Floats) -> bool:
    """Equal to the last bit, zeros' signs included; any NaN equals any NaN."""
    both_nan = np.isnan(left) & np.isnan(right)
    return bool(np.all((left.view(np.uint32) == right.view(np.uint32)) | both_nan))


def random_blocks(type_name: str, count: int, seed: int = 7) -> npt.NDArray[np.uint8]:
    """[count, bytes] of random bytes: every pattern of the integers, and of the scales too."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, LAYOUTS[type_name].bytes_per_block), dtype=np.uint8)


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_random_bytes_decode_as_the_gguf_package_decodes_them(type_name: str) -> None:
    # More blocks than one slice holds, and no multiple of it.
    count = 2 * (1 << 16) // LAYOUTS[type_name].values_per_block + 3
    packed = random_blocks(type_name, count).reshape(-1)
    assert same_bits(dequantize(type_name, packed), oracle(type_name, packed))


@pytest.mark.parametrize("type_name", SCALE_OFFSETS)
def test_special_scales_decode_as_the_gguf_package_decodes_them(type_name: str) -> None:
    blocks = random_blocks(type_name, len(HALFS) ** 2)
    first, second = (grid.reshape(-1) for grid in np.meshgrid(HALFS, HALFS))
    for offset, halfs in zip(SCALE_OFFSETS[type_name], (first, second), strict=False):
        blocks[:, offset : offset + 2] = np.ascontiguousarray(halfs).view(np.uint8).reshape(-1, 2)
    blocks[::5, -16:] = 0
    packed = blocks.reshape(-1)
    assert same_bits(dequantize(type_name, packed), oracle(type_name, packed))


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_zero_bytes_and_no_bytes(type_name: str) -> None:
    zeros = np.zeros(3 * LAYOUTS[type_name].bytes_per_block, np.uint8)
    assert same_bits(dequantize(type_name, zeros), oracle(type_name, zeros))
    assert dequantize(type_name, zeros[:0]).shape == (0,)


def test_decodes_into_memory_that_is_given() -> None:
    packed = random_blocks("Q4_K", 5).reshape(-1)
    out = np.full(5 * 256, np.nan, np.float32)
    assert dequantize("Q4_K", packed, out) is out
    assert same_bits(out, oracle("Q4_K", packed))


def test_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="no whole number of Q8_0 blocks"):
        dequantize("Q8_0", np.zeros(35, np.uint8))
    with pytest.raises(ValueError, match="do not fit"):
        dequantize("Q8_0", np.zeros(34, np.uint8), np.zeros(31, np.float32))
    with pytest.raises(ValueError, match="33 values do not fill Q8_0 blocks of 32"):
        LAYOUTS["Q8_0"].num_bytes(33)


def test_the_peak_is_the_result_and_a_few_megabytes() -> None:
    packed = np.zeros(4_000_000 // 256 * 210, np.uint8)
    dequantize("Q6_K", packed[:210])
    tracemalloc.start()
    values = dequantize("Q6_K", packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < values.nbytes + 4_000_000


def test_the_table_agrees_with_the_gguf_package() -> None:
    for type_id, layout in LAYOUTS_BY_ID.items():
        kind = gguf.GGMLQuantizationType(type_id)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (
            layout.name, layout.values_per_block, layout.bytes_per_block,
        )  # fmt: skip
    known = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
    assert {**known, **UNSUPPORTED_TYPES} == {**UNSUPPORTED_TYPES, **known}
