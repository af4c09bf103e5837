"""Sizes, ages and durations, as Ollama's own tests and outputs have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.human import go_duration, human_age, human_bytes
from server.wire.durations import parse_duration

HOUR = 3600
DAY = 24 * HOUR


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 KB"),
        (1_500, "1.5 KB"),
        (12_345, "12 KB"),
        (1_000_000, "1 MB"),
        (3_149_000_000, "3.1 GB"),
        (2_000_000_000_000, "2 TB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "Less than a second ago"),
        (1, "1 second ago"),
        (59.9, "59 seconds ago"),
        (61, "About a minute ago"),
        (59 * 60, "59 minutes ago"),
        (1.4 * HOUR, "About an hour ago"),
        (1.6 * HOUR, "2 hours ago"),
        (47 * HOUR, "47 hours ago"),
        (48 * HOUR, "2 days ago"),
        (13 * DAY, "13 days ago"),
        (15 * DAY, "2 weeks ago"),
        (70 * DAY, "2 months ago"),
        (800 * DAY, "2 years ago"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert human_age(seconds) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (12_345_678, "12.345678ms"),
        (1_250_000_000, "1.25s"),
        (60 * 10**9, "1m0s"),
        (3_661_500_000_000, "1h1m1.5s"),
    ],
)
def test_durations(nanoseconds: int, text: str) -> None:
    assert go_duration(nanoseconds) == text


@given(st.integers(0, 2**62))
def test_go_reads_a_duration_back(nanoseconds: int) -> None:
    assert parse_duration(go_duration(nanoseconds)) == nanoseconds
