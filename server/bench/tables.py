"""What was measured of chats, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_core.bench.tables import Column, Table
from server.bench.results import ChatResult, LoadResult, Stream, Turn

_UNKNOWN = "not measured"


def turn_table(num_turns: int) -> Table[Turn]:
    """A row for each turn of a chat."""
    return Table(
        [
            Column("turn", lambda turn: str(turn.number), len(str(num_turns))),
            Column("read, tokens", lambda turn: str(turn.reply.num_read)),
            Column("reused, tokens", lambda turn: str(turn.reply.num_cached_tokens)),
            Column("first token, ms", lambda turn: as_ms(turn.reply.first_s)),
            Column("fresh, ms", lambda turn: as_ms(turn.fresh.first_s if turn.fresh else None)),
            Column("written, tokens", lambda turn: str(turn.reply.num_tokens)),
            Column("decode, tokens/s", lambda turn: as_rate(turn.reply.decode_rate)),
            Column("resident, MB", lambda turn: as_mb(turn.memory.resident_bytes)),
            Column("of it states, MB", lambda turn: as_mb(turn.memory.state_bytes)),
        ]
    )


def chat_table(results: Sequence[ChatResult]) -> Table[ChatResult]:
    """A row for each chat: how its turns compare with one another."""
    return Table(
        [
            _model_column(results),
            Column("turns", lambda result: str(len(result.turns))),
            Column("thinking", lambda result: "yes" if result.is_thinking else "no"),
            Column("first token, ms", lambda result: as_ms(result.first_token_s)),
            Column("fresh, ms", lambda result: as_ms(result.fresh_first_token_s)),
            Column("ratio", lambda result: as_ratio(result.first_token_ratio)),
            Column("decode of the first", lambda result: as_rate(result.decode_rates[0])),
            Column("of the last, tokens/s", lambda result: as_rate(result.decode_rates[1])),
            Column("ratio", lambda result: as_ratio(result.decode_ratio)),
            Column("memory growth, MB", lambda result: as_mb(result.memory_growth_bytes)),
        ]
    )


CHAT_NOTES = (
    "First token: median of the turns after the first, over HTTP; fresh: of the same messages, "
    "each after the system prompt alone; ratio: median of such pairs. Decode: five turns at either "
    "end. Memory: what is resident and no state, from the first turn to the last."
)


def stream_table() -> Table[Stream]:
    """A row for each of the chats that were played at once."""
    return Table(
        [
            Column("chat", lambda stream: str(stream.number)),
            Column("first token, ms", lambda stream: as_ms(stream.first_token_s)),
            Column("longest", lambda stream: as_ms(stream.longest_first_token_s)),
            Column("longest gap, ms", lambda stream: as_ms(stream.longest_gap_s)),
            Column("equal texts", lambda stream: f"{stream.num_equal} of {len(stream.together)}"),
        ]
    )


def load_table(results: Sequence[LoadResult]) -> Table[LoadResult]:
    """A row for each model."""
    return Table(
        [
            Column("model", lambda result: result.label, _width(results), is_number=False),
            Column("chats", lambda result: str(len(result.streams))),
            Column("turns", lambda result: str(result.num_turns)),
            Column("one chat, tokens/s", lambda result: as_rate(result.rate_alone)),
            Column("all at once, tokens/s", lambda result: as_rate(result.rate_together)),
            Column("ratio", lambda result: as_ratio(result.rate_ratio)),
            Column("texts", lambda result: "equal" if result.are_equal else "DIFFERENT"),
            Column("resident, MB", lambda result: as_mb(result.memory.resident_bytes)),
            Column("of it states, MB", lambda result: as_mb(result.memory.state_bytes)),
        ]
    )


def _model_column(results: Sequence[ChatResult]) -> Column[ChatResult]:
    return Column("model", lambda result: result.label, _width(results), is_number=False)


def _width(results: Sequence[ChatResult] | Sequence[LoadResult]) -> int:
    return max(len(result.label) for result in results)


def as_ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}"


def as_rate(rate: float | None) -> str:
    return _UNKNOWN if rate is None else f"{rate:.1f}"


def as_ratio(ratio: float | None) -> str:
    return _UNKNOWN if ratio is None else f"{ratio:.2f}"


def as_mb(num_bytes: int | None) -> str:
    return _UNKNOWN if num_bytes is None else f"{num_bytes / 1e6:.1f}"
