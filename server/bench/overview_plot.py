"""What models cost here, in a picture: memory by model, and their chats as curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.bench.overview import OverviewResult, ServerResult, TurnFigures
from server.bench.plot import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR_WIDTH = 0.8

_Value = Callable[[TurnFigures], float | None]

# Titles, values, and whether models differ in them a hundredfold.
_CURVES: Sequence[tuple[str, _Value, bool]] = (
    ("time to first token, ms", lambda turn: turn.first_token_s * 1e3, True),
    ("decode, tokens/s", lambda turn: turn.decode_rate, True),
    ("resident memory, MB", lambda turn: _megabytes(turn.resident_bytes), False),
)


def draw_overview(results: Sequence[OverviewResult], path: str) -> None:
    """Raises CommandError when the file cannot be written."""
    # Imported here: it takes a second, and may not be installed.
    from matplotlib.ticker import LogFormatter  # noqa: PLC0415

    figure = new_figure()
    bars, *panels = figure.subplots(2, 2).flatten()
    _draw_memory(bars, results)
    for axes, (title, value, is_log) in zip(panels, _CURVES, strict=True):
        _draw_curves(axes, results, value)
        axes.set_title(title)
        if is_log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter())
        else:
            axes.set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    save(figure, path)


def _draw_memory(axes: Axes, results: Sequence[OverviewResult]) -> None:
    """A group of bars for each model."""
    kinds: dict[str, list[int | None]] = {
        "file": [result.facts.file_bytes for result in results],
        "resident": [result.ours.loaded.now for result in results],
        "peak": [result.ours.peak_bytes for result in results],
    }
    peers = [result.peer for result in results if result.peer]
    if peers:
        kinds[f"{peers[0].name}, resident"] = [peer.loaded.now for peer in peers]
        kinds[f"{peers[0].name}, peak"] = [peer.peak_bytes for peer in peers]
    width = _BAR_WIDTH / len(kinds)
    for index, (kind, sizes) in enumerate(kinds.items()):
        places = [at + (index + 0.5) * width - _BAR_WIDTH / 2 for at in range(len(results))]
        axes.bar(places, [_megabytes(size) or 0 for size in sizes], width, label=kind)
    axes.set_xticks(range(len(results)), [result.facts.label for result in results], rotation=20)
    axes.set_title("memory, MB")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small")


def _draw_curves(axes: Axes, results: Sequence[OverviewResult], value: _Value) -> None:
    """A curve for each model, and in its colour a dashed one for the peer's."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    for index, result in enumerate(results):
        for server, style in ((result.ours, "-"), (result.peer, "--")):
            if server:
                heights = [value(turn) for turn in server.turns]
                axes.plot(
                    [turn.number for turn in server.turns],
                    [float("nan") if each is None else each for each in heights],
                    style,
                    color=f"C{index % 10}",
                    marker=".",
                    label=_label(result, server),
                )
    axes.set_xlabel("turn")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3, which="both")


def _label(result: OverviewResult, server: ServerResult) -> str:
    label = result.facts.label
    return label if server is result.ours else f"{label}, {server.name}"


def _megabytes(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 1e6
