"""Drawing in a terminal: streamed replies, a spinner while waiting, a bar while working."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
import time
import unicodedata
from types import TracebackType
from typing import TextIO

from server.human import human_bytes

# What a model says must not steer the terminal: all control characters but newline and tab.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_GREY = "\x1b[38;5;245m"  # readable on dark and on light, which "faint" is not everywhere
_BOLD = "\x1b[1m"
_RESET = "\x1b[0m"
_ERASE_LINE = "\r\x1b[K"
_TAB_WIDTH = 8
_MIN_WRAP_WIDTH = 20


def has_colour(stream: TextIO) -> bool:
    """Whether escape codes may be written to `stream`; NO_COLOR and TERM=dumb turn them off."""
    is_wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return is_wanted and stream.isatty()


def char_width(char: str) -> int:
    """The columns that `char` takes: 0 for combining marks and joiners, 2 for East Asian wide."""
    if char.isascii():
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


class WordWrapper:
    """Wraps text that arrives in pieces. A word that turns out too long moves to the next line."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""
        self._word_width = 0

    def push(self, text: str, columns: int) -> str:
        """What to write for `text` on a terminal of `columns`, cursor movements included."""
        # The last column stays free: a cursor that waits there cannot be moved back exactly.
        return "".join(self._place(char, columns - 1) for char in text)

    def _place(self, char: str, width: int) -> str:
        if char == "\n":
            self._start_line("", 0)
            return char
        if char in " \t":
            self._word, self._word_width = "", 0
            step = 1 if char == " " else _TAB_WIDTH - self._column % _TAB_WIDTH
            if self._column + step > width:
                self._start_line("", 0)
                return "\n"
            self._column += step
            return char
        size = char_width(char)
        before = "" if self._column + size <= width else self._break_line(width)
        self._column += size
        # Wide characters need no blank between them: a line may break after each.
        self._word, self._word_width = (
            ("", 0) if size == 2 else (self._word + char, self._word_width + size)
        )
        return before + char

    def _break_line(self, width: int) -> str:
        word, word_width = self._word, self._word_width
        if not word or word_width >= width:
            self._start_line("", 0)
            return "\n"
        self._start_line(word, word_width)
        return f"\x1b[{word_width}D\x1b[K\n{word}"

    def _start_line(self, word: str, word_width: int) -> None:
        self._word, self._word_width = word, word_width
        self._column = word_width


class ReplyWriter:
    """Writes a reply as it streams: the thought between its two lines, dimmed, then the answer."""

    def __init__(self, out: TextIO, *, wrap: bool = True, hide_thinking: bool = False) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._colour = has_colour(out)
        self._wrapper = WordWrapper() if wrap and self._colour else None
        self._hide_thinking = hide_thinking
        self._is_thinking = False
        self._at_line_start = True

    def thinking(self, text: str) -> None:
        if self._hide_thinking or not text:
            return
        if not self._is_thinking:
            self._is_thinking = True
            self._mark("Thinking...\n")
            self._write_raw(_GREY if self._colour else "")
        self._write(text)

    def content(self, text: str) -> None:
        if not text:
            return
        self._end_thinking()
        self._write(text)

    def finish(self) -> None:
        """End the reply, whole or not: colours reset, the cursor at the start of a line."""
        self._end_thinking()
        if not self._at_line_start:
            self._write("\n")

    def _end_thinking(self) -> None:
        if not self._is_thinking:
            return
        self._is_thinking = False
        if not self._at_line_start:
            self._write("\n")
        self._mark("...done thinking.\n\n")

    def _mark(self, text: str) -> None:
        self._write_raw(f"{_GREY}{_BOLD}{text}{_RESET}" if self._colour else text)
        self._wrapper = WordWrapper() if self._wrapper else None
        self._at_line_start = True

    def _write(self, text: str) -> None:
        if self._is_terminal:
            text = _CONTROLS.sub("", text)
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        columns = shutil.get_terminal_size().columns
        if self._wrapper and columns >= _MIN_WRAP_WIDTH:
            text = self._wrapper.push(text, columns)
        self._write_raw(text)

    def _write_raw(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class Spinner:
    """A small moving sign on a terminal while nothing else can be shown; `stop()` erases it."""

    _FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    _PERIOD_S = 0.1

    def __init__(self, out: TextIO, label: str = "") -> None:
        self._out = out
        self._label = f" {label}" if label else ""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if has_colour(out):
            self._thread = threading.Thread(target=self._turn, daemon=True)
            self._thread.start()

    def __enter__(self) -> Spinner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        thread, self._thread = self._thread, None
        if thread:
            thread.join()

    def _turn(self) -> None:
        for frame in itertools.cycle(self._FRAMES):
            if self._stopped.wait(self._PERIOD_S):
                break
            self._draw(f"\r{frame}{self._label}")
        self._draw(_ERASE_LINE)

    def _draw(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class ProgressBar:
    """The stages of a long piece of work: a bar on a terminal, a line per stage elsewhere."""

    _BAR_WIDTH = 24
    _PERIOD_S = 0.1

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_drawn = has_colour(out)
        self._stage = ""
        self._started_at = 0.0
        self._drawn_at = 0.0

    def update(self, stage: str, num_done: int, num_total: int) -> None:
        """Show `num_done` of `num_total` bytes; `num_total` 0 is a stage without a measure."""
        now = time.monotonic()
        if stage != self._stage:
            self.finish()
            self._stage, self._started_at, self._drawn_at = stage, now, 0.0
            if not self._is_drawn:
                self._write(f"{stage}\n")
        is_due = num_done >= num_total or now - self._drawn_at >= self._PERIOD_S
        if self._is_drawn and is_due:
            self._drawn_at = now
            self._write(_ERASE_LINE + self._line(num_done, num_total, now - self._started_at))

    def finish(self) -> None:
        """Leave the last state on its line and go to the next."""
        if self._stage and self._is_drawn:
            self._write("\n")
        self._stage = ""

    def _line(self, num_done: int, num_total: int, elapsed: float) -> str:
        columns = shutil.get_terminal_size().columns
        if num_total <= 0:
            return self._stage[: columns - 1]
        share = min(num_done / num_total, 1.0)
        filled = round(share * self._BAR_WIDTH)
        bar = "█" * filled + " " * (self._BAR_WIDTH - filled)
        sizes = f"{human_bytes(num_done)}/{human_bytes(num_total)}"
        text = f"{self._stage} {share:4.0%} ▕{bar}▏ {sizes}"
        if elapsed > 1 and share < 1:
            text += f"  {human_bytes(int(num_done / elapsed))}/s"
        return text[: columns - 1]

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
