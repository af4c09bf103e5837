"""Encoding float32 values as ggml's blocks: the inverse of `ggml_blocks.dequantize`.

The formats of 32 values (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0) follow ggml's reference rounding, so that
blocks equal those of ggml to the bit. The formats of 256 values (Q4_K, Q5_K, Q6_K) only fix how
scales are stored, not how they are chosen. Here they minimise the squared error:

1. For every group (32 values with a scale and a minimum, or 16 with a scale) some scales around
   the one that spans the group are tried: the values are rounded to each, and the best scale and
   minimum for the rounded values follow in closed form.
2. The scales of a block are rounded to the six or eight bits that it has for them.
3. Each rounded scale is compared with its two neighbours, the minimum fitted anew for each.

Arrays hold a block's values along the first axis and the blocks along the last, so that every
operation runs over long contiguous rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Bytes, Floats

# Values encoded at once: arrays so small that they stay in the caches (a megabyte each), so large
# that threads do not wait for each other between numpy's calls.
_SLICE_VALUES = 1 << 18

# The largest magnitude that each type holds for sure. What limits it are the float16 fields of a
# block: 65504 times the largest number that multiplies them.
MAX_VALUES = {
    "F16": 65504.0,
    "Q4_0": 8 * 65504.0,
    "Q4_1": 65504.0,
    "Q5_0": 16 * 65504.0,
    "Q5_1": 65504.0,
    "Q8_0": 127 * 65504.0,
    # The fitted minimum may lie a little below the smallest value, and the scale that is tried for
    # the largest value may leave some levels unused.
    "Q4_K": 60 * 65504.0,
    "Q5_K": 60 * 65504.0,
    "Q6_K": 25 * 128 * 65504.0,
}

_HALF = np.float32(0.5)
_LOW_NIBBLE = np.uint8(15)


def quantize_blocks(type_name: str, values: Floats) -> Bytes:
    """Encodes float32 `values` (whole blocks, in C order) as blocks of `type_name`: flat bytes.

    Raises ValueError for NaN, infinity and values beyond MAX_VALUES[type_name], and for values that
    do not fill whole blocks.
    """
    layout = LAYOUTS[type_name]
    packed = np.empty(layout.num_bytes(values.size), np.uint8)
    blocks = values.reshape(-1, layout.values_per_block)
    out = packed.reshape(-1, layout.bytes_per_block)
    encode = _ENCODERS[type_name]
    step = _SLICE_VALUES // layout.values_per_block
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            part = blocks[start : start + step]
            check_range(type_name, part)
            # [values of a block, blocks]
            encode(np.ascontiguousarray(part.T), out[start : start + step])
    return packed


def check_range(type_name: str, values: Floats) -> None:
    """Raises ValueError for NaN, infinity and for values that `type_name` cannot store."""
    if not values.size:
        return
    peak = max(-float(values.min()), float(values.max()))
    if not math.isfinite(peak):
        raise ValueError("holds NaN or infinity")
    if peak > MAX_VALUES[type_name]:
        limit = MAX_VALUES[type_name]
        raise ValueError(f"holds values up to {peak:.3g}; {type_name} stores at most {limit:.3g}")


def _halfs(values: Floats) -> Bytes:
    """[count, n] float32 -> [n, 2 count] bytes of float16."""
    return np.ascontiguousarray(values.T, np.float16).view(np.uint8)


def _inverse(scale: Floats) -> Floats:
    """1 / scale; 0 where there is none: scales under 2.9e-39, which are zero in float16 anyway."""
    inverse = np.float32(1) / scale
    result: Floats = np.where(np.isfinite(inverse), inverse, np.float32(0))
    return result


def _signed_peaks(values: Floats) -> Floats:
    """The value of the largest magnitude in each column, the first of several."""
    high, low = values.max(axis=0), values.min(axis=0)
    peaks: Floats = np.where(high > -low, high, low)
    (ties,) = np.nonzero(high == -low)
    if ties.size:
        tied = values[:, ties]
        first = np.abs(tied).argmax(axis=0)
        peaks[ties] = np.take_along_axis(tied, first[None], axis=0)[0]
    return peaks


def _nibble_pairs(low: Bytes, high: Bytes) -> Bytes:
    pairs: Bytes = low | (high << np.uint8(4))
    return pairs


def _encode_q4_0(values: Floats, out: Bytes) -> None:
    scale = _signed_peaks(values) / np.float32(-8)
    levels = (values * _inverse(scale) + np.float32(8.5)).astype(np.uint8)
    np.minimum(levels, 15, out=levels)
    out[:, :2] = _halfs(scale[None])
    out[:, 2:] = _nibble_pairs(levels[:16], levels[16:]).T


def _encode_q5_0(values: Floats, out: Bytes) -> None:
    scale = _signed_peaks(values) / np.float32(-16)
    levels = (values * _inverse(scale) + np.float32(16.5)).astype(np.uint8)
    np.minimum(levels, 31, out=levels)
    out[:, :2] = _halfs(scale[None])
    _store_five_bits(levels, out[:, 2:])


def _encode_q4_1(values: Floats, out: Bytes) -> None:
    levels = _encode_range(values, 15, out)
    out[:, 4:] = _nibble_pairs(levels[:16], levels[16:]).T


def _encode_q5_1(values: Floats, out: Bytes) -> None:
    _store_five_bits(_encode_range(values, 31, out), out[:, 4:])


def _encode_range(values: Floats, max_level: int, out: Bytes) -> Bytes:
    """The levels of Q4_1 and Q5_1, [32, n], once the scale and the minimum are in `out`."""
    low = values.min(axis=0)
    scale = (values.max(axis=0) - low) / np.float32(max_level)
    out[:, :4] = _halfs(np.stack([scale, low]))
    levels: Bytes = ((values - low) * _inverse(scale) + _HALF).astype(np.uint8)
    np.minimum(levels, np.uint8(max_level), out=levels)
    return levels


def _store_five_bits(levels: Bytes, out: Bytes) -> None:
    """[32, n] levels of five bits -> [n, 20]: the fifth bits of all, then the nibbles."""
    out[:, :4] = np.packbits(levels >> 4, axis=0, bitorder="little").T
    out[:, 4:] = _nibble_pairs(levels[:16] & _LOW_NIBBLE, levels[16:] & _LOW_NIBBLE).T


def _encode_q8_0(values: Floats, out: Bytes) -> None:
    scale = np.abs(_signed_peaks(values)) / np.float32(127)
    scaled = values * _inverse(scale)
    # Half away from zero. Both differences are exact in float32.
    whole = np.trunc(scaled)
    scaled -= whole
    scaled *= 2
    whole += np.trunc(scaled, out=scaled)
    out[:, :2] = _halfs(scale[None])
    out[:, 2:] = whole.astype(np.int8).view(np.uint8).T


# Below, the values that share a scale are a column: x is [values of a group, groups * blocks], the
# first group of all blocks, then the second. What there is one of per group is flat.


def _group_columns(values: Floats, num_groups: int) -> Floats:
    """[values of a block, blocks] -> [values of a group, groups * blocks]."""
    num_blocks = values.shape[1]
    groups = values.reshape(num_groups, -1, num_blocks).transpose(1, 0, 2)
    return np.ascontiguousarray(groups).reshape(-1, num_groups * num_blocks)


def _encode_q4_k(values: Floats, out: Bytes) -> None:
    levels = _encode_scales_and_minima(values, 15, out)
    _store_nibbles(levels, out[:, 16:])


def _encode_q5_k(values: Floats, out: Bytes) -> None:
    levels = _encode_scales_and_minima(values, 31, out)
    out[:, 16:48] = np.packbits(levels >> 4, axis=1, bitorder="little")[:, 0].T
    _store_nibbles(levels & _LOW_NIBBLE, out[:, 48:])


def _store_nibbles(levels: Bytes, out: Bytes) -> None:
    """[32, 8, n] levels of four bits -> [n, 128]: every two groups share 32 bytes."""
    pairs = _nibble_pairs(levels[:, 0::2], levels[:, 1::2])
    out[:] = pairs.transpose(2, 1, 0).reshape(-1, 128)


def _encode_scales_and_minima(values: Floats, max_level: int, out: Bytes) -> Bytes:
    """The levels of Q4_K and Q5_K, [32, 8, n], once the scales and minima are in `out`.

    A value is d * scale * level - d_min * minimum, with scale and minimum of six bits.
    """
    fit = _AffineFit(_group_columns(values, 8), max_level)
    scales, minima = fit.search()
    d = _stored_step(scales.reshape(8, -1).max(axis=0), 63)
    d_min = _stored_step(minima.reshape(8, -1).max(axis=0), 63)
    steps, offsets = np.tile(d, 8), np.tile(d_min, 8)  # of the two kinds of levels
    scale_levels, minimum_levels = fit.refine(
        steps, offsets, _to_levels(scales, steps, 0, 63), _to_levels(minima, offsets, 0, 63)
    )
    out[:, :4] = _halfs(np.stack([d, d_min]))
    _store_six_bits(scale_levels, minimum_levels, out[:, 4:16])
    levels = fit.levels(steps * scale_levels, offsets * minimum_levels)
    return levels.astype(np.uint8).reshape(32, 8, -1)


def _store_six_bits(scales: Floats, minima: Floats, out: Bytes) -> None:
    """Flat [8 n] scales and minima -> [n, 12], in the order that `dequantize` describes."""
    scale, minimum = scales.astype(np.uint8).reshape(8, -1), minima.astype(np.uint8).reshape(8, -1)
    out[:, :4] = (scale[:4] | (scale[4:] >> 4 << 6)).T
    out[:, 4:8] = (minimum[:4] | (minimum[4:] >> 4 << 6)).T
    out[:, 8:] = _nibble_pairs(scale[4:] & _LOW_NIBBLE, minimum[4:] & _LOW_NIBBLE).T


def _encode_q6_k(values: Floats, out: Bytes) -> None:
    """A value is d * scale * (level - 32), with a signed scale of eight bits."""
    fit = _ScaleFit(_group_columns(values, 16), 32)
    scales = fit.search()
    # The largest scale becomes -128, which has no positive counterpart.
    d = _stored_step(_signed_peaks(scales.reshape(16, -1)), -128)
    steps = np.tile(d, 16)
    scale_levels = fit.refine(steps, _to_levels(scales, steps, -128, 127))
    levels = (fit.levels(steps * scale_levels) + 32).astype(np.uint8)
    # [16, 16 groups, n] -> the block's order, cut into two halves of four runs of 32 values.
    levels = levels.reshape(16, 16, -1).transpose(1, 0, 2).reshape(2, 4, 32, -1)
    low, high = levels & _LOW_NIBBLE, levels >> 4
    out[:, :128] = _nibble_pairs(low[:, :2], low[:, 2:]).reshape(128, -1).T
    pairs = high[:, 0] | (high[:, 1] << 2) | (high[:, 2] << 4) | (high[:, 3] << 6)
    out[:, 128:192] = pairs.reshape(64, -1).T
    out[:, 192:208] = scale_levels.astype(np.int8).view(np.uint8).reshape(16, -1).T
    out[:, 208:] = _halfs(d[None])


def _stored_step(peak: Floats, max_level: int) -> Floats:
    """The factor of a block's scales that makes `peak` the last level, as float16 will hold it."""
    step: Floats = (peak / np.float32(max_level)).astype(np.float16).astype(np.float32)
    return step


def _to_levels(values: Floats, step: Floats, low: int, high: int) -> Floats:
    """The nearest multiples of `step`; 0 where it is 0."""
    levels: Floats = np.rint(values * _inverse(step))
    return np.clip(levels, np.float32(low), np.float32(high), out=levels)


class _AffineFit:
    """Fits x ~ scale * level - minimum per group, with levels 0 … max_level and minimum >= 0."""

    # Added to max_level for the number of steps that span a group: fewer steps leave values at the
    # ends outside, more steps round the others better.
    _EXTRA_STEPS = np.linspace(-4, 0.8, 17, dtype=np.float32)[:, None]

    def __init__(self, x: Floats, max_level: int) -> None:
        self._x = x
        self._max_level = np.float32(max_level)
        self._sum_x = x.sum(axis=0)
        # Zero is always in the span of a group: the stored minimum cannot be negative.
        self._low = np.minimum(x.min(axis=0), np.float32(0))
        self._levels = np.empty_like(x)
        self._scratch = np.empty_like(x)

    def levels(self, scale: Floats, minimum: Floats) -> Floats:
        """The nearest levels: memory that the next call overwrites."""
        return self._rounded(np.add(self._x, minimum, out=self._scratch), _inverse(scale))

    def _rounded(self, raised: Floats, inverse: Floats) -> Floats:
        levels = np.multiply(raised, inverse, out=self._levels)
        np.rint(levels, out=levels)
        np.clip(levels, np.float32(0), self._max_level, out=levels)
        return levels

    def search(self) -> tuple[Floats, Floats]:
        """The best scales and minima found, both >= 0."""
        span = self._x.max(axis=0) - self._low
        inverses = _inverse(span / (self._max_level + self._EXTRA_STEPS))  # [tries, groups]
        raised = np.subtract(self._x, self._low, out=self._scratch)
        sums = _LevelSums(len(inverses), self._x)
        for index, inverse in enumerate(inverses):
            sums.add(index, self._rounded(raised, inverse))
        gain, scale, minimum = self._best(sums)
        # The levels nearest to what was fitted may differ from those it was fitted to.
        sums = _LevelSums(1, self._x)
        sums.add(0, self.levels(scale, minimum))
        new_gain, new_scale, new_minimum = self._best(sums)
        is_better = new_gain > gain
        return np.where(is_better, new_scale, scale), np.where(is_better, new_minimum, minimum)

    def _best(self, sums: _LevelSums) -> tuple[Floats, Floats, Floats]:
        """(gain, scale, minimum) of the best of the tries; the squared error is sum(x²) - gain."""
        levels, squares, products = sums.levels, sums.squares, sums.products
        count = np.float32(len(self._x))
        determinant = count * squares - levels * levels
        scale = (count * products - self._sum_x * levels) / determinant
        minimum = (levels * products - squares * self._sum_x) / determinant
        is_free = (determinant > 0) & (minimum > 0)
        scale = np.where(is_free, scale, products / squares)
        minimum = np.where(is_free, minimum, np.float32(0))
        gain = np.where(scale > 0, scale * products - minimum * self._sum_x, np.float32(0))
        best = gain.argmax(axis=0)[None]
        gain, scale, minimum = (
            np.take_along_axis(each, best, axis=0)[0] for each in (gain, scale, minimum)
        )
        # Without gain all values are the same, zero or less: a minimum alone holds them.
        is_found = gain > 0
        scale = np.where(is_found, scale, np.float32(0))
        return gain, scale, np.where(is_found, minimum, -self._low)

    def refine(
        self, d: Floats, d_min: Floats, steps: Floats, offsets: Floats
    ) -> tuple[Floats, Floats]:
        """The rounded scales and minima or better neighbours of them, as whole numbers."""
        best_steps, best_offsets = steps, offsets
        best_error = self._error(d * steps, d_min * offsets)
        for change in (0, 1, -1):
            tried = np.clip(steps + np.float32(change), np.float32(0), np.float32(63))
            scale = d * tried
            levels = self.levels(scale, d_min * offsets)
            minimum = (scale * levels.sum(axis=0) - self._sum_x) / np.float32(len(levels))
            fitted = _to_levels(minimum, d_min, 0, 63)
            error = self._error(scale, d_min * fitted)
            is_better = error < best_error
            best_error = np.where(is_better, error, best_error)
            best_steps = np.where(is_better, tried, best_steps)
            best_offsets = np.where(is_better, fitted, best_offsets)
        return best_steps, best_offsets

    def _error(self, scale: Floats, minimum: Floats) -> Floats:
        difference = self.levels(scale, minimum)
        difference *= scale
        difference -= self._scratch  # x + minimum
        return _dot(difference, difference)


class _ScaleFit:
    """Fits x ~ scale * level per group, with levels -half … half - 1."""

    # Added to half for the level of the largest magnitude, which becomes negative: that side has a
    # level more.
    _EXTRA_STEPS = np.linspace(-6, 1, 15, dtype=np.float32)[:, None]

    def __init__(self, x: Floats, half: int) -> None:
        self._x = x
        self._half = np.float32(half)
        self._levels = np.empty_like(x)

    def levels(self, scale: Floats) -> Floats:
        """The nearest levels: memory that the next call overwrites."""
        return self._rounded(_inverse(scale))

    def _rounded(self, inverse: Floats) -> Floats:
        levels = np.multiply(self._x, inverse, out=self._levels)
        np.rint(levels, out=levels)
        np.clip(levels, -self._half, self._half - 1, out=levels)
        return levels

    def search(self) -> Floats:
        """The best scales found."""
        high, low = self._x.max(axis=0), self._x.min(axis=0)
        peak = np.where(high > -low, high, low)
        inverses = _inverse(-peak / (self._half + self._EXTRA_STEPS))  # [tries, groups]
        sums = _LevelSums(len(inverses), self._x)
        for index, inverse in enumerate(inverses):
            sums.add(index, self._rounded(inverse))
        gain, scale = self._best(sums)
        # The levels nearest to what was fitted may differ from those it was fitted to.
        sums = _LevelSums(1, self._x)
        sums.add(0, self.levels(scale))
        new_gain, new_scale = self._best(sums)
        return np.where(new_gain > gain, new_scale, scale)

    @staticmethod
    def _best(sums: _LevelSums) -> tuple[Floats, Floats]:
        """(gain, scale) of the best of the tries; the squared error is sum(x²) - gain."""
        scale = sums.products * _inverse(sums.squares)
        gain = scale * sums.products
        best = gain.argmax(axis=0)[None]
        return np.take_along_axis(gain, best, axis=0)[0], np.take_along_axis(scale, best, axis=0)[0]

    def refine(self, d: Floats, steps: Floats) -> Floats:
        """The rounded scales or better neighbours of them, as whole numbers."""
        best_steps, best_error = steps, self._error(d * steps)
        for change in (1, -1):
            tried = np.clip(steps + np.float32(change), np.float32(-128), np.float32(127))
            error = self._error(d * tried)
            is_better = error < best_error
            best_error = np.where(is_better, error, best_error)
            best_steps = np.where(is_better, tried, best_steps)
        return best_steps

    def _error(self, scale: Floats) -> Floats:
        difference = self.levels(scale)
        difference *= scale
        difference -= self._x
        return _dot(difference, difference)


class _LevelSums:
    """Per try and group, the sums that a fit needs: of levels, of their squares, of level * x."""

    def __init__(self, num_tries: int, x: Floats) -> None:
        self._x = x
        shape = (num_tries, x.shape[1])
        self.levels = np.empty(shape, np.float32)
        self.squares = np.empty(shape, np.float32)
        self.products = np.empty(shape, np.float32)

    def add(self, index: int, levels: Floats) -> None:
        np.add.reduce(levels, axis=0, out=self.levels[index])
        _dot(levels, levels, out=self.squares[index])
        _dot(levels, self._x, out=self.products[index])


def _dot(left: Floats, right: Floats, out: Floats | None = None) -> Floats:
    """Sums of products over the columns."""
    result: Floats = np.einsum("vn,vn->n", left, right, out=out)
    return result


_ENCODERS: dict[str, Callable[[Floats, Bytes], None]] = {
    "Q4_0": _encode_q4_0,
    "Q4_1": _encode_q4_1,
    "Q5_0": _encode_q5_0,
    "Q5_1": _encode_q5_1,
    "Q8_0": _encode_q8_0,
    "Q4_K": _encode_q4_k,
    "Q5_K": _encode_q5_k,
    "Q6_K": _encode_q6_k,
}
