"""Chats as curves over their turns, in a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.bench.results import ChatResult, Turn
from server.cli.errors import CommandError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
_SIZE_INCHES = (11.0, 7.5)
_HEADROOM = 1.1

_PANELS: Sequence[tuple[str, Callable[[Turn], float | None]]] = (
    ("tokens read", lambda turn: turn.reply.num_read),
    ("time to first token, ms", lambda turn: turn.reply.first_s * 1e3),
    ("decode, tokens/s", lambda turn: turn.reply.decode_rate),
    ("resident memory without states, MB", lambda turn: _megabytes(turn.memory.other_bytes)),
)


def check_plot(path: str) -> None:
    """Raises CommandError when nothing could be drawn there: better now than after the chats."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--plot needs matplotlib; install it: pip install matplotlib")
    if Path(path).suffix.lower() not in _FORMATS:
        raise CommandError(f"--plot {path}: must end in {', '.join(_FORMATS)}")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise CommandError(f"--plot {path}: there is no folder {folder}; make it first")


def draw(results: Sequence[ChatResult], path: str) -> None:
    """Raises CommandError when the file cannot be written."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure = new_figure()
    panels = figure.subplots(2, 2).flatten()
    for axes, (title, value) in zip(panels, _PANELS, strict=True):
        for result in results:
            numbers = [turn.number for turn in result.turns]
            values = [value(turn) for turn in result.turns]
            heights = [float("nan") if each is None else each for each in values]
            axes.plot(numbers, heights, marker=".", label=_label(result))
        axes.set_xlabel("turn")
        axes.set_title(title)
        axes.set_ylim(0, axes.get_ylim()[1] * _HEADROOM)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0].legend()
    save(figure, path)


def new_figure() -> Figure:
    # Imported here: it takes a second, and may not be installed.
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=_SIZE_INCHES, layout="constrained")


def save(figure: Figure, path: str) -> None:
    """Raises CommandError when the file cannot be written."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise CommandError(f"--plot {path}: cannot be written: {error.strerror}") from error


def _label(result: ChatResult) -> str:
    return f"{result.label}, {len(result.turns)} turns{', thinking' if result.is_thinking else ''}"


def _megabytes(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 1e6
