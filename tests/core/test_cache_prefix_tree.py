"""The prefix tree against a dictionary, over random histories."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_core.cache.prefix_tree import NODE_BYTES, Node, PrefixTree
from rwkv_core.cache.tokens import TokenArray

# Few different tokens, so that texts share prefixes; runs make edges longer than one token.
TEXTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 5)).map(lambda run: (run[0],) * run[1]), max_size=5
).map(lambda runs: sum(runs, ()))


@dataclass(frozen=True)
class Step:
    is_removal: bool
    text: tuple[int, ...]


STEPS = st.lists(st.builds(Step, st.booleans(), TEXTS), max_size=40)


def array(text: tuple[int, ...]) -> TokenArray:
    return np.array(text, np.int32)


def texts(tree: PrefixTree[int]) -> dict[tuple[int, ...], int | None]:
    return {tuple(node.tokens.tolist()): node.entry for node in tree}


def grown(steps: list[Step]) -> tuple[PrefixTree[int], dict[tuple[int, ...], int]]:
    """A tree and its model after some steps."""
    tree: PrefixTree[int] = PrefixTree()
    nodes: dict[tuple[int, ...], Node[int]] = {}
    model: dict[tuple[int, ...], int] = {}
    for number, step in enumerate(steps):
        if not step.is_removal:
            node = tree.insert(array(step.text), number)
            assert nodes.get(step.text, node) is node
            nodes[step.text], model[step.text] = node, number
        elif step.text in model:
            tree.remove(nodes.pop(step.text))
            del model[step.text]
    return tree, model


@settings(deadline=None, max_examples=60)
@given(STEPS, st.lists(TEXTS, max_size=10))
def test_finds_what_a_dictionary_finds(steps: list[Step], asked: list[tuple[int, ...]]) -> None:
    tree, model = grown(steps)
    assert texts(tree) == model
    assert len(tree) == len(model)
    for text in [*asked, *model]:
        expected = [model[text[:end]] for end in range(len(text) + 1) if text[:end] in model]
        found = tree.prefixes(array(text))
        assert [node.entry for node in found] == expected
        assert all(text[: node.num_tokens] == tuple(node.tokens.tolist()) for node in found)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_keeps_only_what_its_entries_need(steps: list[Step]) -> None:
    tree, _ = grown(steps)
    num_nodes = num_bytes = 0
    pending = list(tree._root.children.items())
    while pending:
        first_token, node = pending.pop()
        assert node.edge[:4] == first_token
        assert node.entry is not None or len(node.children) > 1
        num_nodes += 1
        num_bytes += len(node.edge)
        pending.extend(node.children.items())
    assert tree.num_bytes == NODE_BYTES * num_nodes + num_bytes


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_nothing_is_left_when_all_is_removed(steps: list[Step]) -> None:
    tree, _ = grown(steps)
    for node in list(tree):
        tree.remove(node)
    assert len(tree) == tree.num_bytes == 0


def test_the_nearest_node_before_another_tells_whether_it_was_superseded() -> None:
    tree: PrefixTree[str] = PrefixTree()
    first = tree.insert(array((1, 2)), "first")
    assert not first.children
    second = tree.insert(array((1, 2, 3)), "second")
    assert first.children
    tree.remove(second)
    assert not first.children


def test_later_changes_of_the_callers_tokens_change_nothing() -> None:
    tree: PrefixTree[int] = PrefixTree()
    tokens = array((1, 2, 3))
    tree.insert(tokens, 1)
    tokens[:] = 9
    assert texts(tree) == {(1, 2, 3): 1}


def test_a_tree_frees_its_entries_when_it_is_dropped() -> None:
    class Entry:
        pass

    tree: PrefixTree[Entry] = PrefixTree()
    entries = [Entry() for _ in range(3)]
    alive = [weakref.ref(entry) for entry in entries]
    for length, entry in enumerate(entries):
        tree.insert(array((1,) * length), entry)
    gc.disable()
    try:
        del tree, entries, entry
        assert all(each() is None for each in alive)
    finally:
        gc.enable()


def test_a_very_deep_tree() -> None:
    tree: PrefixTree[int] = PrefixTree()
    text = np.zeros(1500, np.int32)  # more than Python's own calls may be nested
    for length in range(1, 1501):
        tree.insert(text[:length], length)
    found = tree.prefixes(text)
    assert len(found) == 1500
    assert len(found[-1].tokens) == 1500
    del found, tree


def test_the_size_of_a_node_is_not_understated() -> None:
    texts = np.random.default_rng(0).integers(0, 65536, (500, 2)).astype(np.int32)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tree: PrefixTree[int] = PrefixTree()
        for text in texts:
            tree.insert(text[:1], 0)
            tree.insert(text, 0)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.7 * tree.num_bytes < after - before <= tree.num_bytes
