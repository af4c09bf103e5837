"""A text on its way through the model: how much has been read, and where to stop for a snapshot."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable

import torch

from rwkv_core.cache import SnapshotKind, TokenArray
from rwkv_core.executor import Segment
from rwkv_core.generation import CutPoint
from rwkv_core.state import State

# A long text leaves a snapshot after every so many tokens, so that an edit far behind in it costs
# no more than that: a few seconds of reading on a small machine, for 1% of them in copying.
CHECKPOINT_TOKENS = 1024


class Reading:
    """The known tokens of a text, and the state behind those that have been read.

    `state` belongs to the reading and changes with every pass that a segment of it is part of.
    """

    def __init__(self, tokens: TokenArray, cuts: Iterable[CutPoint] = ()) -> None:
        """`tokens` [T] int32 are not copied. Pieces end at `cuts`, and at the end of the text."""
        self.tokens = tokens
        self.state: State | None = None  # until `start`
        self.num_read = 0
        self._kinds: dict[int, SnapshotKind] = {}
        self._cuts: list[int] = []  # sorted
        for cut in cuts:
            self.add_cut(cut)

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_read

    @property
    def num_to_cut(self) -> int:
        """Tokens that may be read in one go."""
        index = bisect_right(self._cuts, self.num_read)
        end = self._cuts[index] if index < len(self._cuts) else len(self.tokens)
        return end - self.num_read

    @property
    def kind_here(self) -> SnapshotKind | None:
        """Of the snapshot to be left after what has been read; None for no snapshot."""
        return self._kinds.get(self.num_read)

    def add_cut(self, cut: CutPoint) -> None:
        """No effect outside the text."""
        if not 0 < cut.num_tokens <= len(self.tokens):
            return
        if cut.num_tokens not in self._kinds:
            insort(self._cuts, cut.num_tokens)
        self._kinds[cut.num_tokens] = max(cut.kind, self._kinds.get(cut.num_tokens, cut.kind))

    def start(self, state: State, num_read: int) -> None:
        """Goes on from a state, which it takes over, behind the first `num_read` tokens."""
        self.state, self.num_read = state, num_read

    def segment(self, num_tokens: int) -> Segment:
        """The next piece. It has logits of its last token where they are of use: at a cut."""
        assert self.state is not None
        end = self.num_read + num_tokens
        piece = torch.from_numpy(self.tokens[self.num_read : end])
        is_cut = end == len(self.tokens) or end in self._kinds
        return Segment(piece, self.state, num_logits=int(is_cut))

    def has_read(self, num_tokens: int) -> None:
        """A pass has taken the state behind so many more tokens."""
        self.num_read += num_tokens


def checkpoints(num_tokens: int) -> Iterable[CutPoint]:
    """Where a text of this length leaves snapshots because it is long."""
    for position in range(CHECKPOINT_TOKENS, num_tokens, CHECKPOINT_TOKENS):
        yield CutPoint(position, SnapshotKind.CHECKPOINT)
