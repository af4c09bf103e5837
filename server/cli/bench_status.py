"""What `anser bench` is doing at the moment, on standard error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from server.cli.terminal import has_colour


class Status:
    """On a terminal: one line that says what is being done. Every warning is written once.

    The line changes when something new begins; nothing moves while something is being timed.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_drawn = has_colour(out)
        self._label = ""
        self._warnings: set[str] = set()

    @contextmanager
    def of(self, label: str) -> Iterator[None]:
        """What is shown inside is about the model `label`; the line is erased at the end."""
        self._label = label
        try:
            yield
        finally:
            self._draw("")

    def warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            self._draw("")
            print(f"note: {text}", file=self._out, flush=True)

    def show(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns
        self._draw(f"{self._label}: {text}"[: columns - 1])

    def _draw(self, text: str) -> None:
        if self._is_drawn:
            self._out.write(f"\r\x1b[K{text}")
            self._out.flush()
