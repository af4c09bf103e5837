"""Tables as Ollama prints them: columns to the left, four blanks between them."""

from __future__ import annotations

from collections.abc import Sequence

_GAP = "    "


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row has as many cells as the header."""
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(_GAP.join(padded).rstrip())
