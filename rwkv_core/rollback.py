"""Keeps text that turns out to be a stop out of the state: where a reply can be taken back to.

While text is held back, as it may become a stop, the model reads on. The state from before that
text is kept meanwhile: one copy when the holding begins, none for most other tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from rwkv_core.state import State


@dataclass(frozen=True)
class Point:
    """The state behind the first `num_tokens` tokens of a text, and the logits [V] of the last."""

    num_tokens: int
    state: State
    logits: Tensor


@dataclass(frozen=True)
class _Boundary:
    """A place between two tokens and two characters of the reply."""

    num_tokens: int  # of prompt and reply
    num_chars: int  # of the reply


class Rollback:
    """Follows a reply: `begin_token` and `end_token` for each one drawn, `keep` after each pass."""

    def __init__(self) -> None:
        self._boundaries: deque[_Boundary] = deque()  # from the last one before the held text on
        # One or two. The first is not behind the last boundary before the held text. There is a
        # second when the held text has moved on meanwhile; it becomes the first if that goes on.
        self._points: deque[Point] = deque()
        self._spare: State | None = None  # memory of a point that was dropped

    def begin_token(self, num_tokens: int, num_chars: int, *, is_whole: bool) -> None:
        """A token follows so many tokens of prompt and reply, and characters of the reply.

        `is_whole`: no character is incomplete there.
        """
        if is_whole:
            self._boundaries.append(_Boundary(num_tokens, num_chars))

    def end_token(self, num_safe_chars: int, *, is_all_safe: bool) -> None:
        """With the token, so many characters of the reply are no part of a stop, or all of it."""
        boundaries, points = self._boundaries, self._points
        if is_all_safe:
            boundaries.clear()
        while len(boundaries) > 1 and boundaries[1].num_chars <= num_safe_chars:
            boundaries.popleft()
        while points and (
            not boundaries or (len(points) > 1 and points[1].num_tokens <= boundaries[0].num_tokens)
        ):
            self._spare = points.popleft().state

    def keep(self, *known: Point) -> None:
        """Copies, of the states that there are now, the one that may be needed when they are gone.

        `known` are in the order of the text. Together with the point that is kept already, the
        first is not behind the last boundary before the held text.
        """
        boundaries, points = self._boundaries, self._points
        if not boundaries or len(points) > 1:
            return
        target = boundaries[0].num_tokens
        num_kept = points[0].num_tokens if points else -1
        if num_kept == target:
            return
        nearest = self.nearest(target, *known)
        if nearest is not None and nearest.num_tokens > num_kept:
            self._drop_points()
            points.append(self._copy(nearest))
        elif known[-1].num_tokens > num_kept:
            points.append(self._copy(known[-1]))

    def target(self, num_tokens: int) -> int:
        """How many tokens there are up to the last place before the held text; `num_tokens` when
        no token that holds any of it has been read.
        """
        return self._boundaries[0].num_tokens if self._boundaries else num_tokens

    def nearest(self, target: int, *known: Point) -> Point | None:
        """The last of the points that are kept or `known` that is not behind the target."""
        before = [each for each in (*self._points, *known) if each.num_tokens <= target]
        return max(before, key=lambda each: each.num_tokens, default=None)

    def _drop_points(self) -> None:
        while self._points:
            self._spare = self._points.popleft().state

    def _copy(self, point: Point) -> Point:
        state, self._spare = self._spare, None
        if state is None:
            state = point.state.clone()
        else:
            state.copy_(point.state)
        return Point(point.num_tokens, state, point.logits.clone())
