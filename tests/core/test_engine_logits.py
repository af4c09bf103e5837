"""The head is for the tokens that something is drawn from: hardly any of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import pytest
from torch import Tensor

from rwkv_core.cache import SnapshotKind, StateCache
from rwkv_core.engine import CutPoint, Engine
from rwkv_core.executor import Segment
from rwkv_core.reading import CHECKPOINT_TOKENS
from tests.core.test_engine import WatchedModel, request, run
from tests.tools.snapshots import KEY

NUM_REPLY_TOKENS = 5


class CountingModel(WatchedModel):
    """Knows of how many tokens logits were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_rows: list[tuple[int, int]] = []  # tokens and logits of each segment

    def advance_batch(self, segments: Sequence[Segment], *, all_logits: bool = False) -> Tensor:
        assert not all_logits
        self.num_rows += [(len(each.token_ids), each.num_logits) for each in segments]
        logits = super().advance_batch(segments)
        assert len(logits) == sum(each.num_logits for each in segments)
        return logits


@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 300, CHECKPOINT_TOKENS + 200])
def test_a_prompt_has_logits_where_a_snapshot_or_the_reply_needs_them(
    num_tokens: int, has_cache: bool
) -> None:
    model = CountingModel()
    cuts = (CutPoint(100, SnapshotKind.SYSTEM_PROMPT), CutPoint(num_tokens, SnapshotKind.TURN))
    prompt = [1 + index % 200 for index in range(num_tokens)]
    cache = StateCache(KEY, 1 << 30) if has_cache else None
    with closing(Engine(model, cache=cache)) as engine:
        wanted = request(prompt, max_new_tokens=NUM_REPLY_TOKENS, snapshot_at=cuts)
        run(engine, wanted).finished()
    of_prompt: list[tuple[int, int]] = []
    of_reply: list[tuple[int, int]] = []
    for rows in model.num_rows:
        (of_prompt if sum(count for count, _ in of_prompt) < num_tokens else of_reply).append(rows)
    ends = {num_tokens, *(end for end in (100, CHECKPOINT_TOKENS) if end < num_tokens)}
    assert sum(count for count, _ in of_prompt) == num_tokens
    assert max(num_logits for _, num_logits in of_prompt) == 1
    assert 1 <= sum(num_logits for _, num_logits in of_prompt) <= len(ends)
    assert of_reply[: NUM_REPLY_TOKENS - 1] == [(1, 1)] * (NUM_REPLY_TOKENS - 1)
