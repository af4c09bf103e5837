"""What models cost here, as Markdown: speed by turn, memory by model, time to first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwkv_core.bench.tables import Column, Table
from server.bench.overview import OverviewResult, ServerResult, TurnFigures
from server.bench.tables import as_mb, as_ms, as_rate, as_ratio

# A chat grows fastest at its beginning.
_SHOWN_TURNS = (1, 3, 6, 10, 30, 60, 100, 300, 600, 1000)

NOTES = (
    "Over HTTP, greedy, without drafts and thinking; medians of the chats. Resident: memory of the "
    "server's process, with the model loaded and used once, or after a turn of the first chat; the "
    "states in it are kept for turns to come, within a budget. Peak: the most that was resident. "
    "State: of one chat, whatever its length."
)


@dataclass(frozen=True)
class TurnRow:
    label: str
    ours: TurnFigures
    peer: TurnFigures | None

    @property
    def decode_ratio(self) -> float | None:
        ours, theirs = self.ours.decode_rate, self.peer.decode_rate if self.peer else None
        return ours / theirs if ours and theirs else None


@dataclass(frozen=True)
class FirstTokenRow:
    label: str
    server: ServerResult


def shown_turns(num_turns: int) -> list[int]:
    """Some of a chat's turns, the last among them."""
    return sorted({*(number for number in _SHOWN_TURNS if number <= num_turns), num_turns})


def turn_rows(result: OverviewResult) -> list[TurnRow]:
    theirs = result.peer.turns if result.peer else None
    return [
        TurnRow(result.facts.label, result.ours.turns[at], theirs[at] if theirs else None)
        for at in (number - 1 for number in shown_turns(result.num_turns))
    ]


def turn_table(*, has_peer: bool, label_width: int) -> Table[TurnRow]:
    """A row for each of the turns that are shown, of each model. With a peer, all have one."""
    columns: list[Column[TurnRow]] = [
        Column("model", lambda row: row.label, label_width, is_number=False),
        Column("turn", lambda row: str(row.ours.number)),
        Column("read, tokens", lambda row: str(row.ours.num_read)),
        Column("prefill, tokens/s", lambda row: as_rate(row.ours.prefill_rate)),
        Column("decode, tokens/s", lambda row: as_rate(row.ours.decode_rate)),
        Column("resident, MB", lambda row: as_mb(row.ours.resident_bytes)),
        Column("of it states, MB", lambda row: as_mb(row.ours.state_bytes)),
    ]
    if has_peer:
        columns += [
            Column("peer's read", lambda row: str(_peer_of(row).num_read)),
            Column("peer's prefill", lambda row: as_rate(_peer_of(row).prefill_rate)),
            Column("peer's decode", lambda row: as_rate(_peer_of(row).decode_rate)),
            Column("decode ratio", lambda row: as_ratio(row.decode_ratio)),
            Column("peer's resident", lambda row: as_mb(_peer_of(row).resident_bytes)),
        ]
    return Table(columns)


def memory_table(results: Sequence[OverviewResult]) -> Table[OverviewResult]:
    """A row for each model."""
    columns: list[Column[OverviewResult]] = [
        Column("model", lambda each: each.facts.label, _width(results), is_number=False),
        Column("parameters", lambda each: each.facts.size),
        Column("type", lambda each: each.facts.type_name, is_number=False),
        Column("file, MB", lambda each: as_mb(each.facts.file_bytes)),
        Column("state, MB", lambda each: as_mb(each.facts.state_bytes)),
        Column("resident, MB", lambda each: as_mb(each.ours.loaded.now)),
        Column("peak, MB", lambda each: as_mb(each.ours.peak_bytes)),
    ]
    if any(result.peer for result in results):
        columns += [
            Column("peer's resident", lambda each: as_mb(_loaded_of(each.peer))),
            Column("peer's peak", lambda each: as_mb(_peak_of(each.peer))),
        ]
    return Table(columns)


def first_token_rows(results: Sequence[OverviewResult]) -> list[FirstTokenRow]:
    return [
        FirstTokenRow(result.facts.label, server)
        for result in results
        for server in (result.ours, result.peer)
        if server
    ]


def first_token_table(results: Sequence[OverviewResult]) -> Table[FirstTokenRow]:
    """A row for each model and server, a column for each turn; some turns of a long chat."""
    num_turns = results[0].num_turns
    numbers = range(1, num_turns + 1) if num_turns <= 10 else shown_turns(num_turns)
    names = max(len(row.server.name) for row in first_token_rows(results))
    columns: list[Column[FirstTokenRow]] = [
        Column("first token, ms", lambda row: row.label, _width(results), is_number=False),
        Column("server", lambda row: row.server.name, names, is_number=False),
    ]
    columns += [_first_token_column(number) for number in numbers]
    return Table(columns)


def _peer_of(row: TurnRow) -> TurnFigures:
    assert row.peer is not None
    return row.peer


def _first_token_column(number: int) -> Column[FirstTokenRow]:
    return Column(f"turn {number}", lambda row: as_ms(row.server.turns[number - 1].first_token_s))


def _width(results: Sequence[OverviewResult]) -> int:
    return max(len(result.facts.label) for result in results)


def _loaded_of(server: ServerResult | None) -> int | None:
    return server.loaded.now if server else None


def _peak_of(server: ServerResult | None) -> int | None:
    return server.peak_bytes if server else None
