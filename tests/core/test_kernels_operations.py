"""Single operations of the kernels against PyTorch, with every instruction set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_core import formulas
from rwkv_core.wkv import wkv_step
from tests.tools.native import Operations, fake_quantized, relative


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


# ---- operations on rows --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 32, 64, 96, 208, 768, 4096])
def test_layer_norm(native: Operations, width: int) -> None:
    weight, bias = noise(width, seed=1), noise(width, seed=2)
    for scale, offset in ((1.0, 0.0), (1e-4, 0.0), (100.0, 1000.0), (0.0, 3.0)):
        x, out = noise(width, scale=scale) + offset, torch.empty(width)
        native.layer_norm(x.numpy(), weight.numpy(), bias.numpy(), 1e-5, out.numpy())
        expected = torch.nn.functional.layer_norm(
            x.double(), (width,), weight.double(), bias.double(), 1e-5
        )
        # Beside the mean of 1000, float32 keeps four digits of the rest.
        tolerance = 1e-6 + 1e-6 * offset / max(scale, 0.1)
        assert relative(out.double(), expected) < tolerance


def test_mix(native: Operations) -> None:
    h, previous, lerp = (noise(208, seed=seed) for seed in range(3))
    out = torch.empty(208)
    native.mix(h.numpy(), previous.numpy(), lerp.numpy(), out.numpy())
    torch.testing.assert_close(out, torch.lerp(h, previous, lerp), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "reference"), [("tanh", torch.tanh), ("sigmoid", torch.sigmoid)])
def test_activations(native: Operations, name: str, reference: Callable[[Tensor], Tensor]) -> None:
    spread = torch.cat(
        (torch.linspace(-100, 100, 4001), torch.logspace(-38, 4, 4095, base=10.0), torch.zeros(16))
    )[: 8112 // 16 * 16]
    x = torch.cat((spread, -spread))
    expected = reference(x.double())
    native.activate(name, x.numpy())
    assert ((x.double() - expected).abs() <= 3e-7 * expected.abs() + 1e-37).all()
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0] * 4)
    expected = reference(special)
    native.activate(name, special.numpy())
    torch.testing.assert_close(special, expected, rtol=0, atol=1e-37, equal_nan=True)


def test_relu_squared_counts_its_zeros(native: Operations) -> None:
    x = noise(320)
    x[::5] = 0.0
    x[1] = 1e-30  # whose square is no more
    expected = x.relu().square()
    assert native.activate("relu_squared", x.numpy()) == int((expected == 0).sum())
    assert torch.equal(x, expected)
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0] * 4)
    assert native.activate("relu_squared", special.numpy()) == 8
    assert special[0].isinf()
    assert special[2].isnan()


# ---- activations for quantized matrices ----------------------------------------------------------


def quantized(native: Operations, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, scales, negated sums and scaled sums of x [T, K]."""
    length, width = x.shape
    blocks = width // 32
    codes = torch.full((blocks, length, 32), 99, dtype=torch.int8)
    scales, scaled_sums = torch.full((blocks, length), 99.0), torch.full((blocks, length), 99.0)
    sums = torch.full((blocks, 3, length), 99, dtype=torch.int32)
    native.quantize(x.numpy(), codes.numpy(), scales.numpy(), sums.numpy(), scaled_sums.numpy())
    return codes, scales, sums, scaled_sums


def test_quantized_rows(native: Operations) -> None:
    x = noise(5, 192)
    x[0, :32] = 0.0
    x[1, 32:64] = 1e-35  # too small to be told from zero
    x[2, 64:96] *= 1e-20
    x[3, 96:128] *= 1e30
    x[4, 130] = 1e6  # an outlier takes the digits of its block alone
    codes, scales, sums, scaled_sums = quantized(native, x)
    amax = x.reshape(*x.shape[:-1], -1, 32).abs().amax(-1).t()
    torch.testing.assert_close(scales, torch.where(amax < 1e-30, 0.0, amax / 127), rtol=0, atol=0)
    halves = codes.long().reshape(*codes.shape[:2], 2, 16).sum(-1)
    assert torch.equal(sums[:, :2].long(), -halves.transpose(1, 2))
    assert torch.equal(sums[:, 2].long(), -codes.long().sum(-1))
    torch.testing.assert_close(scaled_sums, scales * codes.long().sum(-1), rtol=0, atol=0)
    values = (codes * scales.unsqueeze(-1)).permute(1, 0, 2).reshape(5, 192)
    torch.testing.assert_close(values, fake_quantized(x), rtol=0, atol=0)
    assert ((values - x).abs() <= (amax.t() / 254 * 1.0001 + 1e-34).repeat_interleave(32, 1)).all()
    for row in range(5):  # by itself
        alone = quantized(native, x[row : row + 1])
        assert torch.equal(alone[0][:, 0], codes[:, row])
        assert torch.equal(alone[1][:, 0], scales[:, row])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", [0, 15, 16, 31])
def test_a_block_that_is_not_finite_stays_so(native: Operations, value: float, place: int) -> None:
    x = noise(2, 96)
    x[1, 32 + place] = value
    codes, scales, _, scaled_sums = quantized(native, x)
    assert scales.isnan().sum() == 1
    assert scales[1, 1].isnan()
    assert scaled_sums[1, 1].isnan()
    assert (codes[1, 1] != 0).all()


@pytest.mark.parametrize("split_halves", [False, True])
@pytest.mark.parametrize("length", [1, 3, 16])
def test_inactive_channels_are_left_out(
    native: Operations, split_halves: bool, length: int
) -> None:
    x = noise(length, 160).relu() * (noise(160, seed=3) > 0)
    x[:, 32:64] = 0.0
    x[:, 64:96] = 1.0
    codes = quantized(native, x)[0]
    active, packed = np.zeros(5, np.uint32), torch.full_like(codes, 99)
    native.pack_active(codes.numpy(), split_halves, active, packed.numpy())
    assert active[1] == 0
    assert active[2] == 0xFFFFFFFF
    for block, mask in enumerate(active.tolist()):
        is_active = torch.tensor([bool(mask >> channel & 1) for channel in range(32)])
        assert torch.equal(is_active, (codes[block] != 0).any(0))
        halves = [range(16), range(16, 32)] if split_halves else [range(32)]
        for half in halves:
            kept = codes[block][:, [channel for channel in half if is_active[channel]]]
            expected = torch.zeros(length, len(half), dtype=torch.int8)
            expected[:, : kept.shape[1]] = kept
            assert torch.equal(packed[block][:, half.start : half.stop], expected)


# ---- the time mix of heads -----------------------------------------------------------------------

EPS = 64e-5


def time_mix_reference(
    rows: Tensor, vectors: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `time_mix` of the extension computes, in float64: v, out and the state."""
    rows, vectors, state = rows.double(), vectors.double(), state.double()
    heads, size, _ = state.shape
    w0, a0, v0, k_k, k_a, r_k, norm_weight, norm_bias = vectors
    r, w, k, v, a, g = rows[:6]
    if len(rows) == 8:
        v = torch.lerp(v, rows[7], torch.sigmoid(v0 + rows[6]))
    log_w = formulas._LOG_DECAY_SCALE * torch.sigmoid(w0 + w)
    a = torch.sigmoid(a0 + a)
    split = (-1, heads, size)
    kk = torch.nn.functional.normalize((k * k_k).view(split), dim=-1, eps=1e-12)
    k = k * (1 + (a - 1) * k_a)
    bonus = (r * k * r_k).view(split).sum(-1, keepdim=True) * v.view(split)
    y = []
    state = state.unsqueeze(0)
    for t in range(r.shape[0]):
        r_t, log_w_t, k_t, v_t, a_t = (x.view(split)[t : t + 1] for x in (r, log_w, k, v, a))
        kk_t = kk[t : t + 1]
        step, state = wkv_step(state, r_t, log_w_t, k_t, v_t, -kk_t, kk_t * a_t)
        y.append(step)
    normed = torch.nn.functional.group_norm(
        torch.cat(y).flatten(1), heads, norm_weight, norm_bias, EPS
    )
    return v, (normed + bonus.flatten(1)) * g, state.squeeze(0)


def random_time_mix(length: int, heads: int, size: int, kinds: int) -> tuple[Tensor, ...]:
    width = heads * size
    rows = noise(kinds, length, width)
    rows[1] *= 3  # decays from weak to strong
    vectors = noise(8, width, seed=1)
    return rows, vectors, noise(heads, size, size, seed=2, scale=0.3)


def run_time_mix(native: Operations, rows: Tensor, vectors: Tensor, state: Tensor) -> Tensor:
    out = torch.empty(rows.shape[1:])
    native.time_mix(rows.numpy(), vectors.numpy(), EPS, state.numpy(), out.numpy())
    return out


@pytest.mark.parametrize("kinds", [6, 8])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_time_mix(native: Operations, size: int, kinds: int) -> None:
    for length in (1, 2, 70):
        rows, vectors, state = random_time_mix(length, 3, size, kinds)
        v, expected, expected_state = time_mix_reference(rows, vectors, state)
        out = run_time_mix(native, rows, vectors, state)
        assert relative(out.double(), expected) < 1e-5
        assert relative(state.double(), expected_state) < 1e-5
        assert relative(rows[3].double(), v) < 1e-6


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_time_mix_of_a_cut_sequence(native: Operations, size: int) -> None:
    rows, vectors, start = random_time_mix(37, 2, size, 8)
    whole_state = start.clone()
    whole = run_time_mix(native, rows.clone(), vectors, whole_state)
    for cut in (1, 5, 36):
        state = start.clone()
        pieces = [
            run_time_mix(native, piece.contiguous(), vectors, state)
            for piece in torch.split(rows, cut, dim=1)
        ]
        assert torch.equal(torch.cat(pieces), whole)
        assert torch.equal(state, whole_state)


def test_a_key_of_zeros_removes_nothing(native: Operations) -> None:
    rows, vectors, state = random_time_mix(3, 2, 16, 6)
    rows[2] = 0.0
    _, expected, expected_state = time_mix_reference(rows, vectors, state)
    out = run_time_mix(native, rows, vectors, state)
    assert relative(out.double(), expected) < 1e-5
    assert relative(state.double(), expected_state) < 1e-5
