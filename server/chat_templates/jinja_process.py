"""Asks the process that renders Jinja templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkv_core.worker_process import WorkerError, WorkerProcess
from server.go_template import TemplateError

_WORKER = Path(__file__).with_name("jinja_worker.py")
# Python and Jinja take about 60 MB of addresses.
_MAX_MEMORY_BYTES = 768 << 20
MAX_OUTPUT_CHARS = 32 << 20
# A chat template takes milliseconds; the first one waits for the process to start.
MAX_SECONDS = 10.0


class JinjaProcess:
    """A process for all threads, which take turns."""

    def __init__(self, max_seconds: float = MAX_SECONDS) -> None:
        self._process = WorkerProcess(
            _WORKER, max_seconds=max_seconds, max_memory_bytes=_MAX_MEMORY_BYTES
        )

    def render(self, template: str, values: dict[str, Any]) -> str:
        """Raises TemplateError for what cannot be rendered, or takes too long or too much."""
        request = {"template": template, "values": values, "max_chars": MAX_OUTPUT_CHARS}
        try:
            answer = self._process.ask(request)
        except (RecursionError, ValueError):
            raise TemplateError("chat_template: the messages are nested too deep") from None
        except WorkerError as error:
            raise TemplateError(f"chat_template: {error}") from error
        if "error" in answer:
            raise TemplateError(f"chat_template: {answer['error']}")
        return str(answer["text"])

    def close(self) -> None:
        self._process.close()


PROCESS = JinjaProcess()
