"""The chunked form of the recurrence against the token loop, in float64 as the truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rwkv_core.wkv import CHUNK, wkv_sequence, wkv_step

BATCH, HEADS, SIZE = 2, 3, 16


def _inputs(length: int, seed: int) -> list[Tensor]:
    """state [B, H, N, N], then r, log w, k, v, a, b [B, T, H, N], as in a trained model."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    shape = (BATCH, length, HEADS, SIZE)
    log_w = -math.exp(-0.5) * torch.sigmoid(3 * normal(*shape))
    kk = torch.nn.functional.normalize(normal(*shape), dim=-1)
    iclr = torch.sigmoid(normal(*shape))
    state = normal(BATCH, HEADS, SIZE, SIZE)
    return [state, normal(*shape), log_w, normal(*shape), normal(*shape), -kk, kk * iclr]


def _token_loop(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    state, *sequences = (each.double() for each in inputs)
    outputs = []
    for tokens in zip(*(each.unbind(1) for each in sequences), strict=True):
        y, state = wkv_step(state, *tokens)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def _assert_close(inputs: list[Tensor]) -> None:
    expected_y, expected_state = _token_loop(inputs)
    y, state = wkv_sequence(*inputs)
    assert (y - expected_y).abs().max() < 1e-5 * expected_y.std()
    assert (state - expected_state).abs().max() < 1e-5 * expected_state.std()


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_sequence_equals_token_loop(length: int) -> None:
    _assert_close(_inputs(length, seed=length))


def test_strongest_decay_for_a_whole_chunk() -> None:
    inputs = _inputs(2 * CHUNK, seed=1)
    inputs[2] = torch.full_like(inputs[2], -math.exp(-0.5))
    _assert_close(inputs)


def test_one_key_repeated_without_decay() -> None:
    """The inverse of the chunk's triangle must not cancel: its powers grow like binomials here."""
    inputs = _inputs(2 * CHUNK, seed=2)
    key = inputs[5][:, :1].expand_as(inputs[5])
    inputs[2] = torch.zeros_like(inputs[2])
    inputs[5], inputs[6] = key, -0.999 * key
    _assert_close(inputs)


def test_nothing_written_leaves_the_state() -> None:
    inputs = [torch.zeros_like(each) for each in _inputs(5, seed=3)]
    inputs[0] = torch.ones_like(inputs[0])
    _, state = wkv_sequence(*inputs)
    assert torch.equal(state, inputs[0])


def test_gradients_flow_through_the_chunked_form() -> None:
    inputs = [each.double().requires_grad_() for each in _inputs(20, seed=4)]
    y, state = wkv_sequence(*inputs)
    chunked = torch.autograd.grad((y.square().sum() + state.square().sum()), inputs)
    y, state = _token_loop(inputs)
    looped = torch.autograd.grad((y.square().sum() + state.square().sum()), inputs)
    for got, expected in zip(chunked, looped, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
