"""What a model costs here: its memory, and its speed at the turns of a chat.

Times in seconds, memory in bytes, rates per second.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rwkv_core.bench.machine import ProcessMemory
from server.bench.results import Reply


@dataclass(frozen=True)
class TurnSample:
    """A turn of one chat. `memory` is the server's after it, `state_bytes` of it are states; None
    where the server does not tell.
    """

    reply: Reply
    memory: ProcessMemory
    state_bytes: int | None


@dataclass(frozen=True)
class TurnFigures:
    """A turn of several chats: medians of them. None is what no chat could tell.

    `resident_bytes` and `state_bytes` are those of the first, before which the server had no chat.
    """

    number: int
    num_read: int
    num_cached: int
    first_token_s: float
    prefill_rate: float | None
    decode_rate: float | None
    resident_bytes: int | None
    state_bytes: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "turn": self.number,
            "tokens_read": self.num_read,
            "tokens_reused": self.num_cached,
            "time_to_first_token_s": self.first_token_s,
            "prefill_tokens_per_s": self.prefill_rate,
            "decode_tokens_per_s": self.decode_rate,
            "resident_bytes": self.resident_bytes,
            "state_bytes": self.state_bytes,
        }


@dataclass(frozen=True)
class ServerResult:
    """Of one server: memory with the model loaded and used once, and chats of equally many turns.

    At least one chat, of at least one turn.
    """

    name: str
    loaded: ProcessMemory
    chats: Sequence[Sequence[TurnSample]]

    @cached_property
    def turns(self) -> Sequence[TurnFigures]:
        return [
            _figures(number, samples)
            for number, samples in enumerate(zip(*self.chats, strict=True), start=1)
        ]

    @property
    def peak_bytes(self) -> int | None:
        """The most that was ever resident, loading and the chats included."""
        return self.chats[-1][-1].memory.peak

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "resident_bytes": self.loaded.now,
            "peak_bytes": self.peak_bytes,
            "turns": [turn.as_json() for turn in self.turns],
            "time_to_first_token_s": [
                [sample.reply.first_s for sample in chat] for chat in self.chats
            ],
        }


@dataclass(frozen=True)
class ModelFacts:
    """`num_threads` is what servers compute it with, `state_bytes` are of one chat."""

    label: str
    size: str  # parameters, for people
    type_name: str  # of most weights in the file
    file_bytes: int
    state_bytes: int
    num_threads: int


@dataclass(frozen=True)
class OverviewResult:
    """One model, on our server and where there is one on a peer's."""

    facts: ModelFacts
    ours: ServerResult
    peer: ServerResult | None

    @property
    def num_turns(self) -> int:
        return len(self.ours.turns)

    def as_json(self) -> dict[str, Any]:
        facts = asdict(self.facts)
        return {
            "model": facts.pop("label"),
            **facts,
            "num_chats": len(self.ours.chats),
            "num_turns": self.num_turns,
            "anser": self.ours.as_json(),
            "peer": self.peer.as_json() if self.peer else None,
        }


def _figures(number: int, samples: Sequence[TurnSample]) -> TurnFigures:
    replies = [sample.reply for sample in samples]
    return TurnFigures(
        number,
        num_read=statistics.median_low(reply.num_read for reply in replies),
        num_cached=statistics.median_low(reply.num_cached_tokens for reply in replies),
        first_token_s=statistics.median(reply.first_s for reply in replies),
        prefill_rate=_median(reply.prefill_rate for reply in replies),
        decode_rate=_median(reply.decode_rate for reply in replies),
        resident_bytes=samples[0].memory.now,
        state_bytes=samples[0].state_bytes,
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
