"""The end of a reply that its state has not read yet: known tokens, and perhaps a draft of more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_core.executor import Segment
from rwkv_core.rollback import Point
from rwkv_core.state import State


class Tail:
    """Reads a draft behind a copy of the state, so that no state ever holds a wrong guess.

    In the pass that verifies a draft the known tokens are read twice: into the state itself, and
    with the draft into the copy. When the whole draft is right the copy takes the state's place;
    else it is dropped, and what was right of it is known, and read in the next pass.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []  # known, drawn from the logits of the last pass
        self.draft: list[int] = []
        self._trial: State | None = None  # behind tokens and draft, once read; else spare memory

    @property
    def num_rows(self) -> int:
        """How many a pass takes to read it."""
        return len(self.tokens) + (len(self.tokens) + len(self.draft) if self.draft else 0)

    def segments(self, state: State) -> list[Segment]:
        """What a pass is to read, with logits of the last known token and of each in the draft.

        `state` is the one before the known tokens.
        """
        known = torch.tensor(self.tokens, dtype=torch.int32)
        if not self.draft:
            return [Segment(known, state)]
        trial = self._trial_of(state)
        tried = torch.tensor(self.tokens + self.draft, dtype=torch.int32)
        return [
            Segment(known, state, num_logits=0),
            Segment(tried, trial, num_logits=1 + len(self.draft)),
        ]

    def settle(self, known: Point, drawn: Sequence[int], logits: Tensor) -> tuple[Point, ...]:
        """After that pass, at least one token was drawn from its logits [1 + draft, V].

        `known` is behind what was known then. Returns the points where there is a state now, the
        last of them to go on from; they hold until the next pass. The drawn tokens that it does
        not hold are the tail now.
        """
        draft, self.draft = self.draft, []
        if draft and len(drawn) == len(logits):
            assert self._trial is not None
            tip = Point(known.num_tokens + len(draft), self._trial, logits[-1])
            self._trial = known.state
            self.tokens = list(drawn[-1:])
            return known, tip
        self.tokens = list(drawn)
        return (known,)

    def _trial_of(self, state: State) -> State:
        if self._trial is None:
            self._trial = state.clone()
        else:
            self._trial.copy_(state)
        return self._trial
