"""Asks the process that renders Jinja templates, and ends it when it does not answer in time."""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from server.go_template import TemplateError

log = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("jinja_worker.py")
# Python and Jinja take about 60 MB of addresses.
_MAX_MEMORY_BYTES = 768 << 20
MAX_OUTPUT_CHARS = 32 << 20
# A chat template takes milliseconds; the first one waits for the process to start.
MAX_SECONDS = 10.0


class JinjaProcess:
    """One process, started when it is first needed, for all threads: they take turns."""

    def __init__(self, max_seconds: float = MAX_SECONDS) -> None:
        self._max_seconds = max_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def render(self, template: str, values: dict[str, Any]) -> str:
        """Raises TemplateError for what cannot be rendered, or takes too long or too much."""
        return self._ask({"template": template, "values": values, "max_chars": MAX_OUTPUT_CHARS})

    def close(self) -> None:
        with self._lock:
            self._end()

    def _ask(self, request: dict[str, Any]) -> str:
        try:
            line = json.dumps(request).encode() + b"\n"
        except (RecursionError, ValueError):
            raise TemplateError("chat_template: the messages are nested too deep") from None
        with self._lock:
            answer = json.loads(self._exchange(line))
        if "error" in answer:
            raise TemplateError(f"chat_template: {answer['error']}")
        return str(answer["text"])

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
            raise TemplateError(
                f"chat_template: it takes longer than {self._max_seconds:g} s, or too much memory"
            )
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, str(_WORKER), str(_MAX_MEMORY_BYTES)]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            except OSError as error:
                problem = f"the process for it cannot start: {error.strerror}"
                raise TemplateError(f"chat_template: {problem}") from error
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
                        log.debug("the pipe of a renderer: %s", error)


PROCESS = JinjaProcess()
