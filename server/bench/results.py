"""What was measured of chats: times in seconds, memory in bytes, rates per second."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# So many turns at either end of a chat make up its first and its last decode speed: one alone has
# too few tokens to say anything to a few percent.
_END_TURNS = 5


@dataclass(frozen=True)
class Reply:
    """A reply as its client saw it. `begin_s` is on a clock that all replies of a run share.

    `first_s` is from the request to the first text, `gaps_s` are between the pieces after it.
    `prefill_s` is what the server took for the prompt, `decode_s` for all tokens but the first.
    """

    content: str
    thinking: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_tokens: int
    begin_s: float
    first_s: float
    gaps_s: tuple[float, ...]
    prefill_s: float
    decode_s: float

    @property
    def num_read(self) -> int:
        return self.num_prompt_tokens - self.num_cached_tokens

    @property
    def prefill_rate(self) -> float | None:
        """Tokens per second, of those that were read."""
        return _rate(self.num_read, self.prefill_s)

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second; None for a reply of one token."""
        return _rate(self.num_tokens - 1, self.decode_s)

    @property
    def text(self) -> tuple[str, str]:
        return self.thinking, self.content

    @property
    def first_at_s(self) -> float:
        return self.begin_s + self.first_s

    @property
    def last_at_s(self) -> float:
        return self.first_at_s + sum(self.gaps_s)


@dataclass(frozen=True)
class Memory:
    """Of the server. `state_bytes` of the resident ones are states, for which there is a budget;
    `resident_bytes` is None where the system does not tell.
    """

    resident_bytes: int | None
    state_bytes: int

    @property
    def other_bytes(self) -> int | None:
        return None if self.resident_bytes is None else self.resident_bytes - self.state_bytes


@dataclass(frozen=True)
class Turn:
    """A turn of a chat. `fresh` is the reply to the same message in a chat of its own, which has
    the system prompt in common; not every turn has one.
    """

    number: int
    reply: Reply
    memory: Memory
    fresh: Reply | None = None

    @property
    def first_token_ratio(self) -> float | None:
        """Time to the first token, to that of the fresh prompt."""
        return None if self.fresh is None else self.reply.first_s / self.fresh.first_s

    def as_json(self) -> dict[str, Any]:
        return {
            "turn": self.number,
            "tokens_read": self.reply.num_read,
            "tokens_reused": self.reply.num_cached_tokens,
            "tokens_written": self.reply.num_tokens,
            "time_to_first_token_s": self.reply.first_s,
            "decode_tokens_per_s": self.reply.decode_rate,
            "longest_gap_s": max(self.reply.gaps_s, default=None),
            **asdict(self.memory),
            "fresh_tokens_read": self.fresh.num_read if self.fresh else None,
            "fresh_time_to_first_token_s": self.fresh.first_s if self.fresh else None,
        }


@dataclass(frozen=True)
class ChatResult:
    """A chat of at least two turns."""

    label: str
    is_thinking: bool
    pause_s: float
    turns: Sequence[Turn]

    @property
    def first_token_s(self) -> float:
        """The median of all turns but the first."""
        return statistics.median(turn.reply.first_s for turn in self.turns[1:])

    @property
    def fresh_first_token_s(self) -> float:
        return statistics.median(turn.fresh.first_s for turn in self.turns if turn.fresh)

    @property
    def first_token_ratio(self) -> float:
        """The median of those of its turns."""
        ratios = (turn.first_token_ratio for turn in self.turns)
        return statistics.median(ratio for ratio in ratios if ratio is not None)

    @property
    def decode_rates(self) -> tuple[float | None, float | None]:
        """Tokens per second of the first few turns, and of the last."""
        count = max(1, min(_END_TURNS, len(self.turns) // 2))
        ends = self.turns[:count], self.turns[-count:]
        first, last = (decode_rate(turn.reply for turn in turns) for turns in ends)
        return first, last

    @property
    def decode_ratio(self) -> float | None:
        first, last = self.decode_rates
        return last / first if first and last else None

    @property
    def memory_growth_bytes(self) -> int | None:
        """Of what is no state, from the first turn to the last."""
        first, last = self.turns[0].memory.other_bytes, self.turns[-1].memory.other_bytes
        return None if first is None or last is None else last - first

    def as_json(self) -> dict[str, Any]:
        first_rate, last_rate = self.decode_rates
        return {
            "model": self.label,
            "num_turns": len(self.turns),
            "thinking": self.is_thinking,
            "pause_s": self.pause_s,
            "time_to_first_token_s": self.first_token_s,
            "fresh_time_to_first_token_s": self.fresh_first_token_s,
            "time_to_first_token_ratio": self.first_token_ratio,
            "first_decode_tokens_per_s": first_rate,
            "last_decode_tokens_per_s": last_rate,
            "decode_ratio": self.decode_ratio,
            "memory_growth_bytes": self.memory_growth_bytes,
            "turns": [turn.as_json() for turn in self.turns],
        }


@dataclass(frozen=True)
class Stream:
    """One of several chats: its replies when it was alone, and with the others."""

    number: int
    alone: Sequence[Reply]
    together: Sequence[Reply]

    @property
    def num_equal(self) -> int:
        """Turns that said the same both times."""
        pairs = zip(self.alone, self.together, strict=True)
        return sum(one.text == other.text for one, other in pairs)

    @property
    def first_token_s(self) -> float:
        return statistics.median(reply.first_s for reply in self.together)

    @property
    def longest_first_token_s(self) -> float:
        return max(reply.first_s for reply in self.together)

    @property
    def longest_gap_s(self) -> float:
        return max((gap for reply in self.together for gap in reply.gaps_s), default=0.0)

    def as_json(self) -> dict[str, Any]:
        return {
            "chat": self.number,
            "tokens_written": sum(reply.num_tokens for reply in self.together),
            "time_to_first_token_s": self.first_token_s,
            "longest_time_to_first_token_s": self.longest_first_token_s,
            "longest_gap_s": self.longest_gap_s,
            "decode_tokens_per_s": decode_rate(self.together),
            "decode_tokens_per_s_alone": decode_rate(self.alone),
            "equal_texts": self.num_equal,
        }


@dataclass(frozen=True)
class LoadResult:
    """Several chats that ask at the same moments."""

    label: str
    is_thinking: bool
    num_turns: int
    streams: Sequence[Stream]
    memory: Memory

    @property
    def rate_alone(self) -> float | None:
        """Tokens per second of one chat."""
        return decode_rate(reply for stream in self.streams for reply in stream.alone)

    @property
    def rate_together(self) -> float | None:
        """Tokens per second of all chats, from the first token of a turn to its last."""
        num_tokens, seconds = 0, 0.0
        for turn in zip(*(stream.together for stream in self.streams), strict=True):
            num_tokens += sum(reply.num_tokens for reply in turn) - len(turn)
            first = min(reply.first_at_s for reply in turn)
            seconds += max(reply.last_at_s for reply in turn) - first
        return _rate(num_tokens, seconds)

    @property
    def rate_ratio(self) -> float | None:
        alone, together = self.rate_alone, self.rate_together
        return together / alone if alone and together else None

    @property
    def are_equal(self) -> bool:
        return all(stream.num_equal == self.num_turns for stream in self.streams)

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.label,
            "num_chats": len(self.streams),
            "num_turns": self.num_turns,
            "thinking": self.is_thinking,
            "decode_tokens_per_s": self.rate_together,
            "decode_tokens_per_s_alone": self.rate_alone,
            "decode_ratio": self.rate_ratio,
            "are_texts_equal": self.are_equal,
            **asdict(self.memory),
            "chats": [stream.as_json() for stream in self.streams],
        }


def decode_rate(replies: Iterable[Reply]) -> float | None:
    """Tokens per second of several replies, one after the other."""
    num_tokens, seconds = 0, 0.0
    for reply in replies:
        num_tokens += reply.num_tokens - 1
        seconds += reply.decode_s
    return _rate(num_tokens, seconds)


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count > 0 and seconds > 0 else None
