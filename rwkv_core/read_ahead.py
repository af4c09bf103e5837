"""Texts that are read when there is nothing else to do: what the next prompts will begin with."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from rwkv_core.cache import Snapshot, SnapshotKind, StateCache, TokenArray
from rwkv_core.generation import CutPoint
from rwkv_core.model import Model
from rwkv_core.reading import Reading, checkpoints

# Texts that may wait. The oldest is given up first: its chat may be over.
_MAX_WAITING = 64


@dataclass(frozen=True, eq=False)
class _Text:
    tokens: TokenArray
    cache_scope: str


class ReadAhead:
    """Brings states behind texts into the cache, a piece at a time.

    Used by one thread, but for `add`, which any may call.
    """

    def __init__(self, model: Model, cache: StateCache) -> None:
        self.num_done = 0  # texts whose state is in the cache, whoever put it there
        self._model = model
        self._cache = cache
        self._waiting: deque[_Text] = deque(maxlen=_MAX_WAITING)
        self._reading: Reading | None = None
        self._cache_scope = ""  # of what is being read
        self._logits: Tensor | None = None  # [V] of its last token, if it has read one

    @property
    def num_waiting(self) -> int:
        """Texts that are not read to their end."""
        return len(self._waiting) + (self._reading is not None)

    def add(self, tokens: TokenArray, cache_scope: str = "") -> None:
        self._waiting.append(_Text(tokens, cache_scope))

    def clear(self) -> None:
        self._waiting.clear()
        self._reading = self._logits = None

    def step(self, max_rows: int) -> int:
        """Reads on; returns how many tokens. After an exception the text is given up."""
        reading = self._reading or self._next()
        if reading is None:
            return 0
        self._reading = None
        num_tokens = min(reading.num_to_cut, max_rows)
        segment = replace(reading.segment(num_tokens), num_logits=1)
        self._logits = self._model.advance_batch([segment])[0]
        reading.has_read(num_tokens)
        if reading.kind_here is not None:
            self._put(reading, reading.kind_here)
        if reading.num_left:
            self._reading = reading
        else:
            self.num_done += 1
        return num_tokens

    def give_way(self, tokens: TokenArray, cache_scope: str = "") -> None:
        """A request for `tokens` comes first. What has been read is left where it will find it.

        Texts that it begins with are its own to read; others are read later.
        """
        reading, self._reading = self._reading, None
        if reading is not None:
            self._put(reading, SnapshotKind.CHECKPOINT)
            if len(self._waiting) < _MAX_WAITING:
                self._waiting.appendleft(_Text(reading.tokens, self._cache_scope))
        for _ in range(len(self._waiting)):
            text = self._waiting.popleft()
            is_beginning = np.array_equal(text.tokens, tokens[: len(text.tokens)])
            if not is_beginning or text.cache_scope != cache_scope:
                self._waiting.append(text)

    def _next(self) -> Reading | None:
        """The next text of which something is left to read."""
        while self._waiting:
            text = self._waiting.popleft()
            tokens = text.tokens
            hit = self._cache.lookup(tokens, text.cache_scope)
            num_read = hit.num_tokens if hit else 0
            if num_read < len(tokens):
                end = CutPoint(len(tokens), SnapshotKind.TURN)
                reading = Reading(tokens, [*checkpoints(len(tokens)), end])
                if hit:
                    state = hit.snapshot.state.clone().to(self._model.device)
                else:
                    state = self._model.new_state()
                reading.start(state, num_read)
                self._cache_scope = text.cache_scope
                return reading
            self.num_done += 1
        return None

    def _put(self, reading: Reading, kind: SnapshotKind) -> None:
        assert reading.state is not None
        assert self._logits is not None
        snapshot = Snapshot.of(reading.state, self._logits)
        self._cache.put(reading.tokens[: reading.num_read], snapshot, kind, self._cache_scope)
