"""ggml's block layouts: how GGUF and rwkv.cpp files pack the numbers of a row.

A quantized row is a run of blocks. Every block holds 32 or 256 values as small integers and the
scales that turn them back into numbers. The layouts are those of ggml's `ggml-common.h`; the
arithmetic keeps its order of operations in float32, so that decoded values equal ggml's to the bit.

Decoding works in slices: the working memory is a few megabytes whatever the size of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Values decoded at once: the temporaries of a slice (about ten bytes a value) stay in a
# core's cache.
_SLICE_VALUES = 1 << 16


@dataclass(frozen=True)
class BlockLayout:
    """One ggml type. `type_id` is its number in GGUF files (rwkv.cpp counts differently)."""

    name: str
    type_id: int
    values_per_block: int
    bytes_per_block: int

    @property
    def is_quantized(self) -> bool:
        return self.values_per_block > 1

    def num_bytes(self, num_values: int) -> int:
        """Size of `num_values` values, which must fill whole blocks."""
        if num_values % self.values_per_block:
            raise ValueError(
                f"{num_values} values do not fill {self.name} blocks of {self.values_per_block}"
            )
        return num_values // self.values_per_block * self.bytes_per_block


LAYOUTS: dict[str, BlockLayout] = {
    layout.name: layout
    for layout in (
        BlockLayout("F32", 0, 1, 4),
        BlockLayout("F16", 1, 1, 2),
        BlockLayout("Q4_0", 2, 32, 18),
        BlockLayout("Q4_1", 3, 32, 20),
        BlockLayout("Q5_0", 6, 32, 22),
        BlockLayout("Q5_1", 7, 32, 24),
        BlockLayout("Q8_0", 8, 32, 34),
        BlockLayout("Q4_K", 12, 256, 144),
        BlockLayout("Q5_K", 13, 256, 176),
        BlockLayout("Q6_K", 14, 256, 210),
        BlockLayout("BF16", 30, 1, 2),
    )
}
LAYOUTS_BY_ID: dict[int, BlockLayout] = {layout.type_id: layout for layout in LAYOUTS.values()}

# Types that exist but that RWKV files are not made of: known only to be named in an error.
UNSUPPORTED_TYPES: dict[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


def dequantize(type_name: str, packed: Bytes, out: Floats | None = None) -> Floats:
    """Decodes `packed`, a flat array of whole blocks, to float32.

    Returns a flat array of all the values: `out` (flat, contiguous, of exactly that size) if given.
    Scales that are infinite or NaN follow float arithmetic. Raises ValueError on a size that is no
    whole number of blocks.
    """
    layout = LAYOUTS[type_name]
    num_blocks, rest = divmod(packed.size, layout.bytes_per_block)
    if rest:
        raise ValueError(f"{packed.size} bytes are no whole number of {type_name} blocks")
    num_values = num_blocks * layout.values_per_block
    if out is None:
        out = np.empty(num_values, np.float32)
    if out.shape != (num_values,):
        raise ValueError(f"{num_values} values do not fit an array of shape {out.shape}")
    blocks = packed.reshape(num_blocks, layout.bytes_per_block)
    values = out.reshape(num_blocks, layout.values_per_block)
    decode = _DECODERS[type_name]
    step = max(1, _SLICE_VALUES // layout.values_per_block)
    with np.errstate(all="ignore"):
        for start in range(0, num_blocks, step):
            values[start : start + step] = decode(blocks[start : start + step])
    return out


def _halfs(blocks: Bytes, start: int, count: int = 1) -> Floats:
    """`count` float16 fields from byte `start` of every block: [n, count] float32."""
    fields = np.ascontiguousarray(blocks[:, start : start + 2 * count])
    return fields.view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[..., m] bytes -> [..., 2 m]: all the low halves, then all the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _bits(packed: Bytes) -> Bytes:
    """[n, m] bytes -> [n, 8 m] bits as 0 and 1, the lowest bit of the first byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _decode_f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view(np.float32)


def _decode_f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _decode_bf16(blocks: Bytes) -> Floats:
    # bfloat16 is the upper half of a float32.
    bits: npt.NDArray[np.uint32] = blocks.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def _decode_q8_0(blocks: Bytes) -> Floats:
    # d, 32 signed bytes
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _halfs(blocks, 0)


def _decode_q4_0(blocks: Bytes) -> Floats:
    # d, 16 bytes of two nibbles: values 0-15 in the low, 16-31 in the high halves; offset by 8
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - 8) * _halfs(blocks, 0)


def _decode_q4_1(blocks: Bytes) -> Floats:
    # d, m, 16 bytes of two nibbles
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _halfs(blocks, 0) + _halfs(blocks, 2)


def _decode_q5_0(blocks: Bytes) -> Floats:
    # d, 32 fifth bits, 16 bytes of two nibbles; offset by 16
    values = _nibbles(blocks[:, 6:]) | (_bits(blocks[:, 2:6]) << 4)
    return (values.astype(np.float32) - 16) * _halfs(blocks, 0)


def _decode_q5_1(blocks: Bytes) -> Floats:
    # d, m, 32 fifth bits, 16 bytes of two nibbles
    values = _nibbles(blocks[:, 8:]) | (_bits(blocks[:, 4:8]) << 4)
    return values.astype(np.float32) * _halfs(blocks, 0) + _halfs(blocks, 2)


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """Bytes 0-15 of a Q4_K or Q5_K block: d, dmin, 12 bytes of 8 scales and 8 minima, 6 bits each.

    Bytes 0-3 and 4-7 of the twelve hold scales and minima 0-3 in their low 6 bits; bytes 8-11 the
    low 4 bits of scales and minima 4-7, whose upper 2 bits are the top bits of bytes 0-7.
    Returns d * scale and dmin * minimum, [n, 8, 1].
    """
    low_scales, low_minima, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low_scales & 63, (high & 15) | (low_scales >> 6 << 4)], axis=1)
    minima = np.concatenate([low_minima & 63, (high >> 4) | (low_minima >> 6 << 4)], axis=1)
    d, d_min = _halfs(blocks, 0), _halfs(blocks, 2)
    scales_32, minima_32 = d * scales.astype(np.float32), d_min * minima.astype(np.float32)
    return scales_32[:, :, None], minima_32[:, :, None]


def _decode_q4_k(blocks: Bytes) -> Floats:
    # scales, 4 runs of 32 bytes: the low halves are a group of 32 values, the high halves the next
    scales, minima = _scales_and_minima(blocks)
    values = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (scales * values.astype(np.float32) - minima).reshape(-1, 256)


def _decode_q5_k(blocks: Bytes) -> Floats:
    # scales, 32 bytes whose bit g is the fifth bit of group g, nibbles as in Q4_K
    scales, minima = _scales_and_minima(blocks)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    groups = np.arange(8, dtype=np.uint8)[None, :, None]
    high = (blocks[:, None, 16:48] >> groups) & 1
    values = low | (high << 4)
    return (scales * values.astype(np.float32) - minima).reshape(-1, 256)


def _decode_q6_k(blocks: Bytes) -> Floats:
    # 128 bytes of nibbles, 64 bytes of upper bit pairs, 16 signed scales (one for 16 values), d;
    # offset by 32. Each half of 128 values has 64 bytes of nibbles (64 low halves, then 64 high
    # halves) and 32 bytes of four pairs.
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    values = (low | (high << 4)).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = _halfs(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[:, :, None] * values).reshape(-1, 256)


_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    "F32": _decode_f32,
    "F16": _decode_f16,
    "BF16": _decode_bf16,
    "Q8_0": _decode_q8_0,
    "Q4_0": _decode_q4_0,
    "Q4_1": _decode_q4_1,
    "Q5_0": _decode_q5_0,
    "Q5_1": _decode_q5_1,
    "Q4_K": _decode_q4_k,
    "Q5_K": _decode_q5_k,
    "Q6_K": _decode_q6_k,
}
