"""The measured cost of a row: that it comes near the true one, and recovers from a wrong one."""

from __future__ import annotations

import random

import pytest

from rwkv_core.row_cost import RowCost


def true_share(pass_s: float, row_s: float, num_rows: int) -> float:
    return row_s / (pass_s + row_s * num_rows)


@pytest.mark.parametrize("pass_s", [0.0005, 0.04])
@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.08, 0.5, 5.0])
def test_it_finds_the_slope_in_noise(pass_s: float, ratio: float) -> None:
    cost, noise = RowCost(), random.Random(1)
    row_s = ratio * pass_s
    for _ in range(400):
        num_rows = noise.choice((1, 1, 1, 3, 8, 20, 300))
        seconds = (pass_s + row_s * num_rows) * noise.uniform(0.9, 1.1)
        if noise.random() < 0.02:
            seconds += 2.0  # the machine was away
        cost.record(num_rows, seconds)
    for num_rows in (1, 8):
        wanted = true_share(pass_s, row_s, num_rows)
        assert cost.share(num_rows) == pytest.approx(wanted, rel=0.35, abs=0.035)


def test_without_measurements_it_takes_a_guess() -> None:
    cost = RowCost()
    assert 0.02 < cost.share(1) < 0.1
    for _ in range(1000):
        cost.record(1, 0.02)
        assert 0.02 < cost.share(1) < 0.1


def test_a_wrong_measurement_is_forgotten() -> None:
    """Else drafts that seem too dear would never be made, and so never be measured, again."""
    cost = RowCost()
    for _ in range(100):
        cost.record(1, 0.02)
        cost.record(8, 0.5)
    assert cost.share(1) > 0.5
    for _ in range(400):
        cost.record(1, 0.02)
    assert cost.share(1) < 0.1


def test_the_first_pass_may_take_long() -> None:
    cost = RowCost()
    cost.record(30, 5.0)
    for _ in range(10):
        cost.record(1, 0.02)
    assert 0.02 < cost.share(1) < 0.1


def test_it_is_a_share_whatever_is_recorded() -> None:
    cost, choices = RowCost(), random.Random(1)
    for _ in range(2000):
        cost.record(choices.randrange(1, 300), choices.choice((0.0, 1e-9, 0.01, 100.0)))
        assert 0 <= cost.share(choices.randrange(0, 300)) <= 1
