"""What a hit costs for a state of the 2.9B model, in time of a processor: others may be busy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tools.hit_speed import measure, shape


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another count as busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_hit_of_a_large_state(tmp_path: Path) -> None:
    hits = measure(shape(32, 2560), tmp_path, num_tokens=4000, repetitions=8)
    assert min(hit.cpu for hit in hits["memory"]) < 5
    assert min(hit.cpu for hit in hits["disk"]) < 100
    assert min(hit.cpu for hit in hits["cold disk"]) < 100
