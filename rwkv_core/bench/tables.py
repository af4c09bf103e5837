"""Results as Markdown: a table that grows row by row, and a line that says how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rwkv_core.bench.options import SHORT_TEXT_TOKENS, SpeedOptions
from rwkv_core.bench.results import Loaded, QualityResult, SpeedResult, Spread, speed_at

_Result = TypeVar("_Result")

_UNKNOWN = "not measured"
_SPREAD_WIDTH = len("98.7 (97.6–99.8)") + 2


@dataclass(frozen=True)
class Column(Generic[_Result]):
    """One column: what its cells say of a result, and how wide they usually are."""

    title: str
    cell: Callable[[_Result], str]
    width: int = 0
    is_number: bool = True


class Table(Generic[_Result]):
    """Lines of a Markdown table, each to be had before the results after it are there."""

    def __init__(self, columns: Sequence[Column[_Result]]) -> None:
        self._columns = columns
        self._widths = [max(len(column.title), column.width) for column in columns]

    def head(self) -> list[str]:
        rules = [
            "-" * (width + 1) + ":" if column.is_number else "-" * (width + 2)
            for column, width in zip(self._columns, self._widths, strict=True)
        ]
        return [self._line([column.title for column in self._columns]), f"|{'|'.join(rules)}|"]

    def row(self, result: _Result) -> str:
        return self._line([column.cell(result) for column in self._columns])

    def whole(self, results: Sequence[_Result]) -> str:
        """The table of results that are all there."""
        return "\n".join([*self.head(), *map(self.row, results)])

    def _line(self, cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, column, width in zip(cells, self._columns, self._widths, strict=True)
        )
        return f"| {' | '.join(padded)} |"


def speed_table(
    options: SpeedOptions, *, has_peer: bool, label_width: int = 0
) -> Table[SpeedResult]:
    prompt, decode = options.num_prompt_tokens, options.num_decode_tokens
    columns: list[Column[SpeedResult]] = [
        Column("model", lambda result: result.label, label_width, is_number=False),
        Column("type", lambda result: result.loaded.type_name, is_number=False),
        Column("file, MB", lambda result: _megabytes(result.loaded.file_bytes)),
        Column("load, s", lambda result: f"{result.loaded.load_s:.2f}"),
        Column("peak, MB", lambda result: _megabytes(result.finished.peak_memory_bytes)),
        Column(f"prefill of {prompt}, tokens/s", lambda result: _spread(result.prefill)),
        Column(f"decode of {decode}, tokens/s", lambda result: _spread(result.decode)),
        Column("reads, GB/s", _reads, _SPREAD_WIDTH),
        Column("zero channels", lambda result: _share(result.finished.zero_channel_share)),
        Column("layers that skip them", lambda result: _skipping_layers(result.loaded)),
    ]
    if options.batch_size is not None:
        columns += [
            Column(f"{options.batch_size} at once, tokens/s", lambda result: _spread(result.batch)),
            Column("ratio to 1", lambda result: _ratio(result.batch, result.decode)),
        ]
    if options.num_long_tokens is not None:
        short, long = SHORT_TEXT_TOKENS, options.num_long_tokens
        columns += [
            Column(f"decode at {short}", lambda result: _spread(_at(result, 0)), _SPREAD_WIDTH),
            Column(f"decode at {long}", lambda result: _spread(_at(result, 1)), _SPREAD_WIDTH),
            Column(f"memory at {short}, MB", lambda result: _memory(result, 0)),
            Column(f"memory at {long}, MB", lambda result: _memory(result, 1)),
        ]
    if has_peer:
        columns += [
            Column("peer's prefill", lambda result: _spread(result.peer_prefill), _SPREAD_WIDTH),
            Column("prefill ratio", lambda result: _ratio(result.prefill, result.peer_prefill)),
            Column("peer's decode", lambda result: _spread(result.peer_decode), _SPREAD_WIDTH),
            Column("decode ratio", lambda result: _ratio(result.decode, result.peer_decode)),
        ]
    return Table(columns)


def speed_notes(results: Sequence[SpeedResult]) -> str:
    """How results of one command were measured: a sentence below their table."""
    first = results[0]
    options, runtime = first.options, first.runtime
    words = [f"anser bench -p {options.num_prompt_tokens} -n {options.num_decode_tokens}"]
    given = {
        "-r": options.num_repetitions,
        "-t": runtime.num_threads,
        "-b": options.batch_size,
        "--long": options.num_long_tokens,
        "--isa": runtime.isa,
        "--peer": Path(first.peer).name if first.peer else None,
    }
    words += [f"{option} {value}" for option, value in given.items() if value is not None]
    isas = ", ".join(sorted({result.loaded.isa for result in results}))
    return (
        f"`{' '.join(words)}` on {first.processor}, {isas}, threads: {first.loaded.num_threads}. "
        f"Medians of {options.num_repetitions} (lowest–highest). "
        "Reads: weights read while decoding, of the measured bandwidth of the memory."
    )


def quality_table(label_width: int = 0) -> Table[QualityResult]:
    columns: list[Column[QualityResult]] = [
        Column("model", lambda result: result.label, label_width, is_number=False),
        Column("type", lambda result: result.quality.type_name, is_number=False),
        Column("perplexity", lambda result: _perplexity(result.quality.perplexity)),
        Column("in float32", lambda result: _perplexity(result.quality.reference_perplexity)),
        Column("mean KL, nats", lambda result: f"{result.quality.mean_kl:.2e}"),
        Column("same next token", lambda result: f"{result.quality.argmax_agreement:.2%}"),
        Column("same greedy text", _equal_texts),
    ]
    return Table(columns)


def quality_notes(results: Sequence[QualityResult], reference: str | None) -> str:
    """How results of one command were measured: a sentence below their table."""
    first = results[0].quality
    isas = ", ".join(sorted({result.quality.isa for result in results}))
    against = f"{reference} in float32" if reference else "the same weights in float32"
    return (
        f"`anser bench --quality`, {isas}, against {against} (PyTorch). Text: {first.text}, "
        f"{first.num_positions} tokens, {first.num_predicted} of them predicted."
    )


def _spread(values: Spread | None) -> str:
    """`12.3 (12.1–12.4)`; the median alone when there is one value."""
    if values is None:
        return ""
    median = _number(values.median)
    if len(values.values) == 1:
        return median
    return f"{median} ({_number(min(values.values))}–{_number(max(values.values))})"


def _ratio(ours: Spread | None, theirs: Spread | None) -> str:
    return f"{ours.median / theirs.median:.2f}" if ours and theirs else ""


def _reads(result: SpeedResult) -> str:
    rate = f"{result.decode_bytes_per_s / 1e9:.1f}"
    available = result.finished.read_bytes_per_s
    if available is None or result.bandwidth_share is None:
        return f"{rate} of ({_UNKNOWN})"
    return f"{rate} of {available / 1e9:.1f} ({result.bandwidth_share:.0%})"


def _skipping_layers(loaded: Loaded) -> str:
    return f"{loaded.num_skipping_layers} of {loaded.num_layers}"


def _at(result: SpeedResult, index: int) -> Spread:
    return speed_at(result.long[index])


def _memory(result: SpeedResult, index: int) -> str:
    memory = result.long[index].memory_bytes
    return _UNKNOWN if memory is None else _megabytes(memory)


def _equal_texts(result: QualityResult) -> str:
    quality = result.quality
    return f"{result.equal_text_share:.0%} ({quality.num_equal_texts} of {quality.num_prompts})"


def _number(value: float) -> str:
    """Three or four digits: 9.87, 98.7, 987, 9876."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1))))}f}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f}" if num_bytes >= 10_000_000 else f"{num_bytes / 1e6:.1f}"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1%}"


def _perplexity(value: float) -> str:
    return f"{value:.4f}" if value < 1000 else f"{value:.6g}"
