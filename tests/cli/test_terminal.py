"""What a reply looks like on a terminal, by a small emulation of one, and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cli.terminal import ProgressBar, ReplyWriter, Spinner, WordWrapper, char_width

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal_of_40_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)


def screen(output: str, columns: int) -> list[str]:
    """The lines that `output` leaves on a screen: text, newlines, "left N", "erase to the end"."""
    lines: list[list[str]] = [[]]
    column = 0
    for part in re.findall(r"\x1b\[\d*[A-Za-z]|.|\n", output):
        if part == "\n":
            lines.append([])
            column = 0
        elif part.startswith("\x1b") and part.endswith("D"):
            column -= int(part[2:-1])
        elif part == "\x1b[K":
            del lines[-1][column:]
        else:
            cells = [part, *[""] * (char_width(part) - 1)]
            lines[-1][column : column + len(cells)] = cells
            column += len(cells)
            assert column < columns, "a line reached the last column"
    return ["".join(cells).rstrip(" ") for cells in lines]


WORDS = st.lists(st.text("abcdefgh字", min_size=1, max_size=15), min_size=1, max_size=40)


@given(WORDS, st.integers(20, 50), st.lists(st.integers(1, 9), min_size=1))
def test_wrapping_keeps_words_whole_and_loses_nothing(
    words: list[str], columns: int, sizes: list[int]
) -> None:
    text = " ".join(words)
    wrapper, output, start = WordWrapper(), "", 0
    for index in range(len(text)):
        size = sizes[index % len(sizes)]
        output += wrapper.push(text[start : start + size], columns)
        start += size
    lines = screen(output, columns)
    joined = " ".join(lines)
    assert joined.replace(" ", "") == text.replace(" ", "")
    for word in words:
        if "字" not in word:
            assert re.search(rf"(^|[ 字]){word}", joined), f"{word} was broken"


def test_a_word_longer_than_the_line_is_broken() -> None:
    assert screen(WordWrapper().push("x" * 50, 21), 21) == ["x" * 20, "x" * 20, "x" * 10]


def test_indentation_and_line_breaks_stay() -> None:
    text = "def f():\n    return 1\n\n\tx"
    assert WordWrapper().push(text, 80) == text


def test_a_thought_is_dimmed_between_its_two_lines() -> None:
    out = FakeTerminal()
    writer = ReplyWriter(out)
    for piece in ("I ", "think"):
        writer.thinking(piece)
    writer.content("Hello")
    writer.finish()
    grey, bold, reset = "\x1b[38;5;245m", "\x1b[1m", "\x1b[0m"
    head = f"{grey}{bold}Thinking...\n{reset}{grey}"
    tail = f"{grey}{bold}...done thinking.\n\n{reset}"
    assert out.getvalue() == f"{head}I think\n{tail}Hello\n"


def test_a_pipe_gets_plain_text() -> None:
    out = io.StringIO()
    writer = ReplyWriter(out)
    writer.thinking("I think")
    writer.content("word " * 30)
    writer.finish()
    assert out.getvalue() == "Thinking...\nI think\n...done thinking.\n\n" + "word " * 30 + "\n"


def test_hidden_thoughts_leave_no_trace() -> None:
    out = FakeTerminal()
    writer = ReplyWriter(out, hide_thinking=True)
    writer.thinking("secret")
    writer.content("Hello\n")
    writer.finish()
    assert out.getvalue() == "Hello\n"


def test_a_thought_that_is_cut_short_does_not_leave_the_terminal_grey() -> None:
    out = FakeTerminal()
    writer = ReplyWriter(out)
    writer.thinking("I think")
    writer.finish()
    assert out.getvalue().endswith("\x1b[0m")


@pytest.mark.parametrize("attack", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\x08"])
def test_a_reply_cannot_steer_the_terminal(attack: str) -> None:
    out = FakeTerminal()
    writer = ReplyWriter(out, wrap=False)
    writer.content(f"x{attack}y\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out.getvalue())


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = FakeTerminal()
    writer = ReplyWriter(out)
    writer.thinking("I think")
    writer.content("Hello")
    writer.finish()
    assert "\x1b" not in out.getvalue()


def test_the_spinner_erases_itself_and_stays_out_of_pipes() -> None:
    terminal, pipe = FakeTerminal(), io.StringIO()
    for out in (terminal, pipe):
        Spinner(out, "waiting").stop()
    assert pipe.getvalue() == ""
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    terminal, pipe = FakeTerminal(), io.StringIO()
    for out in (terminal, pipe):
        bar = ProgressBar(out)
        bar.update("copying x", 0, 100)
        bar.update("copying x", 100, 100)
        bar.update("hashing", 0, 0)
        bar.finish()
    assert pipe.getvalue() == "copying x\nhashing\n"
    lines = ESCAPES.sub("", terminal.getvalue()).split("\n")
    assert "100%" in lines[0].split("\r")[-1]
    assert max(len(part) for line in lines for part in line.split("\r")) < 40
