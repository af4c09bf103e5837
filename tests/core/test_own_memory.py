"""The memory of states: zeros at first, apart from one another, and given back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rwkv_core.bench.machine import resident_bytes
from rwkv_core.own_memory import zero_floats
from rwkv_core.state import State
from tests.tools.random_checkpoint import TINY
from tests.tools.states import parts, same

MB = 1 << 20


def test_tensors_are_zero_aligned_and_apart() -> None:
    shapes = [(3, 1), (5,), (2, 1, 7), (1,)]
    tensors = zero_floats(shapes)
    assert [tuple(each.shape) for each in tensors] == shapes
    for each in tensors:
        assert each.dtype == torch.float32
        assert each.data_ptr() % 64 == 0
        assert each.untyped_storage().nbytes() == each.nbytes
        assert not each.any()
    for number, each in enumerate(tensors, start=1):
        each.fill_(number)
    assert [set(each.flatten().tolist()) for each in tensors] == [{1}, {2}, {3}, {4}]


def test_a_tensor_outlives_the_others() -> None:
    *others, last = zero_floats([(1000,), (1000,), (1000,)])
    last.fill_(7)
    del others
    assert set(last.tolist()) == {7}


def test_a_clone_is_apart() -> None:
    state = State.zeros(TINY, batch_size=3)
    for part in parts(state):
        part.normal_()
    clone = state.clone()
    assert same(clone, state)
    for part in parts(state):
        part.zero_()
    assert all(bool(part.any()) for part in parts(clone))


@pytest.mark.skipif(resident_bytes() is None, reason="the system does not tell")
def test_what_is_let_go_goes_back_though_small_things_stay() -> None:
    """As states do that come and go while the nodes of the cache's tree stay."""
    zero_floats([(MB // 4,)])
    before = resident_bytes()
    assert before is not None
    kept: list[bytes] = []
    for _ in range(50):
        states = [zero_floats([(MB // 4,)])[0].fill_(1.0) for _ in range(4)]
        kept.append(bytes(500))
        del states[::2]
        kept.append(bytes(1000))
    del states
    after = resident_bytes()
    assert after is not None
    assert after - before < 4 * MB


SNAPSHOTS = """
import sys, torch
from dataclasses import replace
from rwkv_core.cache import Snapshot
from rwkv_core.state import State
from rwkv_core.bench.machine import resident_bytes
from tests.tools.random_checkpoint import TINY

config = replace(TINY, n_layer=int(sys.argv[1]), vocab_size=int(sys.argv[2]))
state, logits = State.zeros(config), torch.zeros(config.vocab_size)
kept = [Snapshot.of(state, logits) for _ in range(100)]
before = resident_bytes()
kept += [Snapshot.of(state, logits) for _ in range(1000)]
print(kept[0].nbytes, (resident_bytes() - before) / 1000)
"""


@pytest.mark.skipif(resident_bytes() is None, reason="the system does not tell")
@pytest.mark.parametrize(("n_layer", "vocab_size"), [(TINY.n_layer, TINY.vocab_size), (8, 20_000)])
def test_the_size_of_a_snapshot_is_what_it_takes(n_layer: int, vocab_size: int) -> None:
    """Its objects and whole pages, too: the budget of a cache is of the memory of the machine. In a
    process of its own: in this one there may be memory that others have left.
    """
    words = [sys.executable, "-c", SNAPSHOTS, str(n_layer), str(vocab_size)]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    counted, taken = map(float, told.split())
    # Freed pieces of the heap serve small ones at first.
    assert 0.75 * counted < taken < 1.05 * counted
