"""What `anser bench` writes and starts, for its tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.cli import main


def cells(line: str) -> list[str]:
    """Of a row of a Markdown table."""
    assert line.startswith("| ")
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text: str) -> list[list[dict[str, str]]]:
    """The rows of each Markdown table, by their titles."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            title, rule, *rows = lines
            assert set(rule) == set("|-:")
            found.append([dict(zip(cells(title), cells(row), strict=True)) for row in rows])
    return found


def exit_code(*words: str) -> int:
    """Runs the command in this process."""
    try:
        return main(words)
    except SystemExit as leaving:  # as the command line's grammar does
        return leaving.code if isinstance(leaving.code, int) else -1


def assert_refused(
    words: tuple[str, ...], code: int, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command leaves with that code and one line that says why, and prints nothing else."""
    assert exit_code(*words) == code
    captured = capsys.readouterr()
    assert problem in captured.err
    assert captured.err.startswith("Error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
