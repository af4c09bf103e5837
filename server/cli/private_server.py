"""A server for one command: a child process on a free port, gone when the command is.

The child is `anser serve --child`: it prints its address when it listens, and leaves when its
standard input ends, which it does even if this process is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from server.cli.errors import CommandError

_MAX_LOG_BYTES = 1_000_000
_START_TIMEOUT_S = 120.0  # importing torch from a cold disk can take most of a minute
_STOP_TIMEOUT_S = 3.0

# The child imports from exactly the folders that this process imports from; `-m` would put the
# current folder first, where a user may well have a folder named "server".
_CHILD_CODE = """\
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from server.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class PrivateServer:
    url: str
    pid: int


@contextmanager
def private_server(variables: Mapping[str, str] | None = None) -> Iterator[PrivateServer]:
    """Start a server, end it on leaving. Raises CommandError saying why it cannot.

    `variables` of the environment are the server's, over those of this process.
    """
    log_path = anser_folder() / "logs" / "server.log"
    with _open_log(log_path) as log:
        log_size = log.tell()
        child = _start(log, variables or {})
        try:
            address = _read_address(child)
            if not address:
                raise CommandError(f"no server could be started: {_last_line(log_path, log_size)}")
            yield PrivateServer(address, child.pid)
        finally:
            _stop(child)


def anser_folder() -> Path:
    """Where Anser keeps what is not a model: the chat's history, logs."""
    return Path.home() / ".anser"


def _start(log: IO[bytes], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    paths = [path or os.getcwd() for path in sys.path]
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD_CODE, json.dumps(paths), "serve", "--child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, **variables, "OLLAMA_HOST": "127.0.0.1:0"},
        start_new_session=True,  # Ctrl-C in the terminal is for the chat, not for its server
    )


def _read_address(child: subprocess.Popen[bytes]) -> str:
    """The line that says where the child listens; empty when it ended instead."""
    assert child.stdout is not None
    watchdog = threading.Timer(_START_TIMEOUT_S, child.kill)
    watchdog.start()
    try:
        return child.stdout.readline().decode().strip()
    finally:
        watchdog.cancel()


def _last_line(log_path: Path, start: int) -> str:
    """What the child's last words were, from the log's byte `start` on."""
    otherwise = f"it said nothing within {_START_TIMEOUT_S:.0f} s"
    try:
        lines = log_path.read_bytes()[start:].decode(errors="replace").split("\n")
    except OSError:
        return otherwise
    said = [line for line in lines if line.strip()]
    return said[-1].removeprefix("Error: ") if said else otherwise


def _stop(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    child.terminate()
    try:
        child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    child.stdout.close()


def _open_log(path: Path) -> IO[bytes]:
    """The log to append to, begun anew when it has grown; the null device if it cannot be kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_full = path.exists() and path.stat().st_size > _MAX_LOG_BYTES
        return path.open("wb" if is_full else "ab")
    except OSError:
        return open(os.devnull, "wb")
