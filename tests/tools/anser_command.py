"""Runs the `anser` command as users do: as a process, in a pipe or in a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).absolute().parents[2]
# Generous: the machine may be busy with something else.
PATIENCE_S = 90.0

_COMMAND = [sys.executable, "-m", "server.cli"]
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")
# Makes the terminal the controlling one, so that Ctrl-C becomes a signal, then becomes the command.
_IN_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Anser:
    """An environment to run the command in: its own home, models folder and server address."""

    home: Path
    models: Path
    host: str = "127.0.0.1:1"  # nothing ever listens there

    @property
    def environment(self) -> dict[str, str]:
        inherited = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        return inherited | {
            "HOME": str(self.home),
            "OLLAMA_HOST": self.host,
            "OLLAMA_MODELS": str(self.models),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
            "TERM": "xterm-256color",
            "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here answers where the cursor is
        }

    def run(
        self, *words: str, stdin: str = "", changes: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_COMMAND, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=self.home,
            env=self.environment | dict(changes or {}),
            check=False,
        )

    def start(self, *words: str, changes: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*_COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
            env=self.environment | dict(changes or {}),
        )

    def terminal(self, *words: str) -> Terminal:
        return Terminal([*_COMMAND, *words], self.environment, self.home)


class Terminal:
    """A program in a pseudo terminal of 24 lines and 80 columns."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
        )
        os.close(slave)
        self._output = b""
        self._num_seen = 0  # characters of `text` that `expect` has gone past

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def raw(self) -> str:
        """All output so far, with its escape codes."""
        return self._output.decode(errors="replace")

    @property
    def text(self) -> str:
        """All output so far, without escape codes."""
        return _ESCAPES.sub("", self.raw)

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str) -> str:
        """Waits for `pattern` in what has come since the last match; the text up to its end."""
        deadline = time.monotonic() + PATIENCE_S
        while not (match := re.compile(pattern).search(self.text, self._num_seen)):
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._read(remaining):
                raise AssertionError(f"no {pattern!r} in {self.text[self._num_seen :]!r}")
        start, self._num_seen = self._num_seen, match.end()
        return self.text[start : match.end()]

    def wait(self) -> int:
        """Reads to the end and gives the exit code."""
        while self._read(PATIENCE_S):
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self, timeout_s: float) -> bool:
        readable, _, _ = select.select([self._master], [], [], timeout_s)
        if not readable:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says so when the program has closed the terminal
            return False
        self._output += data
        return bool(data)
