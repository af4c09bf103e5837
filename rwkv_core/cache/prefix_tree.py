"""Texts as token ids, to be found as prefixes of a longer one: a radix tree.

Inside, tokens are the bytes of their int32 array: comparing and slicing those takes a tenth of the
time that small arrays take, and a long chat is hundreds of nodes deep.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np

from rwkv_core.cache.tokens import TokenArray

Entry = TypeVar("Entry")

# What a node takes beside its tokens: the objects it is made of, as measured, rounded up.
NODE_BYTES = 400

_TOKEN_BYTES = 4


class Node(Generic[Entry]):
    """A place in the tree: the end of a text that is stored, or where texts part.

    As long as it has an entry it is the same object, and `entry` may be replaced by another.
    """

    __slots__ = ("__weakref__", "_parent", "children", "edge", "entry", "num_bytes")

    def __init__(self, parent: Node[Entry] | None, edge: bytes) -> None:
        self.edge = edge  # from the parent to here
        # From the root.
        self.num_bytes: int = len(edge) + (parent.num_bytes if parent else 0)
        self.entry: Entry | None = None
        self.children: dict[bytes, Node[Entry]] = {}  # by the first token of their edge
        # Weak, so that dropping the tree frees what its entries hold at once, without the
        # collector of cycles.
        self._parent = weakref.ref(parent) if parent else None

    @property
    def parent(self) -> Node[Entry] | None:
        return self._parent() if self._parent else None

    @parent.setter
    def parent(self, parent: Node[Entry]) -> None:
        self._parent = weakref.ref(parent)

    @property
    def num_tokens(self) -> int:
        """From the root to here."""
        return self.num_bytes // _TOKEN_BYTES

    @property
    def tokens(self) -> TokenArray:
        """All tokens from the root to here; read-only."""
        edges = []
        node: Node[Entry] | None = self
        while node is not None:
            edges.append(node.edge)
            node = node.parent
        return np.frombuffer(b"".join(edges[::-1]), np.int32)


class PrefixTree(Generic[Entry]):
    """Entries under token sequences. Each node but the root has an entry or several children.

    Not safe for several threads at once.
    """

    def __init__(self) -> None:
        self._root: Node[Entry] = Node(None, b"")
        self._num_entries = 0
        self._num_nodes = 0
        self._num_edge_bytes = 0

    def __len__(self) -> int:
        """Number of entries."""
        return self._num_entries

    def __iter__(self) -> Iterator[Node[Entry]]:
        """All nodes with an entry, each before those behind it."""
        return _with_entries(self._root)

    @property
    def num_bytes(self) -> int:
        """Memory for tokens and nodes, without the entries."""
        return NODE_BYTES * self._num_nodes + self._num_edge_bytes

    def prefixes(self, tokens: TokenArray) -> list[Node[Entry]]:
        """The nodes with an entry for a prefix of `tokens` or for all of it, shortest first."""
        text = tokens.tobytes()
        found = []
        node: Node[Entry] | None = self._root
        while node is not None:
            if node.entry is not None:
                found.append(node)
            start = node.num_bytes
            node = node.children.get(text[start : start + _TOKEN_BYTES])
            if node is not None and not text.startswith(node.edge, start):
                break
        return found

    def beginning_with(self, tokens: TokenArray) -> list[Node[Entry]]:
        """The nodes with an entry for `tokens` or for a text that goes on from them."""
        text = tokens.tobytes()
        node = self._root
        while (start := node.num_bytes) < len(text):
            child = node.children.get(text[start : start + _TOKEN_BYTES])
            if child is None or child.edge[: len(text) - start] != text[start : child.num_bytes]:
                return []
            node = child
        return list(_with_entries(node))

    def insert(self, tokens: TokenArray, entry: Entry) -> Node[Entry]:
        """Stores `entry` for `tokens`, replacing one that is there. Copies the tokens it keeps."""
        text = tokens.tobytes()
        node = self._root
        while (start := node.num_bytes) < len(text):
            child = node.children.get(text[start : start + _TOKEN_BYTES])
            if child is None:
                node = self._add(node, text[start:])
            elif text.startswith(child.edge, start):
                node = child
            else:
                node = self._split(child, _num_common_bytes(child.edge, text[start:]))
        self._num_entries += node.entry is None
        node.entry = entry
        return node

    def remove(self, node: Node[Entry]) -> None:
        """Takes the entry of a node away, and the tokens that nothing else needs."""
        assert node.entry is not None
        node.entry = None
        self._num_entries -= 1
        parent = node.parent
        if parent is None:
            return
        if not node.children:
            del parent.children[node.edge[:_TOKEN_BYTES]]
            self._num_nodes -= 1
            self._num_edge_bytes -= len(node.edge)
            self._merge(parent)
        else:
            self._merge(node)

    def _add(self, parent: Node[Entry], edge: bytes) -> Node[Entry]:
        node = Node(parent, edge)
        parent.children[edge[:_TOKEN_BYTES]] = node
        self._num_nodes += 1
        self._num_edge_bytes += len(edge)
        return node

    def _split(self, node: Node[Entry], num_bytes: int) -> Node[Entry]:
        """A new node after so many bytes of the edge of `node`."""
        parent = node.parent
        assert parent is not None
        upper = Node(parent, node.edge[:num_bytes])
        node.edge = node.edge[num_bytes:]
        node.parent = upper
        upper.children[node.edge[:_TOKEN_BYTES]] = node
        parent.children[upper.edge[:_TOKEN_BYTES]] = upper
        self._num_nodes += 1
        return upper

    def _merge(self, node: Node[Entry]) -> None:
        """Takes out a node that neither has an entry nor parts texts."""
        parent = node.parent
        if parent is None or node.entry is not None or len(node.children) != 1:
            return
        (child,) = node.children.values()
        child.edge = node.edge + child.edge
        child.parent = parent
        parent.children[child.edge[:_TOKEN_BYTES]] = child
        self._num_nodes -= 1


def _with_entries(node: Node[Entry]) -> Iterator[Node[Entry]]:
    """It and those behind it, as far as they have an entry; each before those behind it."""
    pending = [node]
    while pending:
        node = pending.pop()
        if node.entry is not None:
            yield node
        pending.extend(node.children.values())


def _num_common_bytes(one: bytes, other: bytes) -> int:
    """How many bytes, of whole tokens, two different texts begin with alike."""
    length = min(len(one), len(other)) // _TOKEN_BYTES
    differs = np.frombuffer(one, np.int32, length) != np.frombuffer(other, np.int32, length)
    first = int(differs.argmax())
    return _TOKEN_BYTES * (first if differs[first] else length)
