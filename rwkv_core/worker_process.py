"""A process that is asked questions, and ended when it does not answer in time.

For work on what strangers have written, which may take for ever, or all memory, inside one call
that nothing can interrupt.
"""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from rwkv_core.errors import AnserError

log = logging.getLogger(__name__)


class WorkerError(AnserError):
    """The process cannot start, or was lost: it took too long or too much."""


class WorkerProcess:
    """One process, started when it is first needed, for all threads: they take turns.

    `script` is run by its path, with the most bytes of memory that it may take: it reads one JSON
    object a line and writes one for each.
    """

    def __init__(self, script: Path, *, max_seconds: float, max_memory_bytes: int) -> None:
        self._command = [sys.executable, str(script), str(max_memory_bytes)]
        self._max_seconds = max_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises WorkerError, and what json.dumps raises for the request."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            answer: dict[str, Any] = json.loads(self._exchange(line))
        return answer

    def close(self) -> None:
        with self._lock:
            self._end()

    def _exchange(self, line: bytes) -> bytes:
        process = self._started()
        # Ends the read below by ending the process; a pipe cannot be read with a deadline
        # everywhere.
        timer = threading.Timer(self._max_seconds, process.kill)
        timer.start()
        assert process.stdin is not None
        assert process.stdout is not None
        answer = b""
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            pass  # it has ended; said below
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            self._end()
            raise WorkerError(f"it takes longer than {self._max_seconds:g} s, or too much memory")
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C in a terminal is for the server
                )
            except OSError as error:
                raise WorkerError(f"the process for it cannot start: {error.strerror}") from error
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError as error:  # what was to be written has no reader any more
                        log.debug("the pipe of a worker: %s", error)
