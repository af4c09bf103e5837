"""The measuring process: reads calls from standard input, writes their results to standard output.

One JSON object a line. The first line in is `{"task", "num_threads", "arguments"}`, each further
one `{"call": NAME}`; out come `{"progress"}` and `{"warning"}` lines and then one `{"result"}` or
`{"error"}` for each call. The process ends when its input does.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

import torch

from rwkv_core.bench.options import QualityOptions, SpeedOptions
from rwkv_core.bench.process import Progress
from rwkv_core.bench.quality import QualityTask
from rwkv_core.bench.speed import SpeedTask
from rwkv_core.errors import AnserError


class _LogLines(logging.Handler):
    """Sends what is logged to `write`, one line a record."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(" ".join(record.getMessage().split()))


class Task(Protocol):
    """What can be called, by name; each gives a result that JSON can hold."""

    @property
    def calls(self) -> Mapping[str, Callable[[], Any]]: ...


def _speed(arguments: Mapping[str, Any], progress: Progress) -> Task:
    return SpeedTask(arguments["path"], SpeedOptions(**arguments["options"]), progress)


def _quality(arguments: Mapping[str, Any], progress: Progress) -> Task:
    return QualityTask(arguments["path"], QualityOptions(**arguments["options"]), progress)


TASKS: Mapping[str, Callable[[Mapping[str, Any], Progress], Task]] = {
    "speed": _speed,
    "quality": _quality,
}


def main() -> None:
    out = _claim_stdout()
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(messages,), daemon=True).start()

    def write(key: str, value: Any) -> None:
        try:
            out.write(json.dumps({key: value}) + "\n")
            out.flush()
        except BrokenPipeError:  # nobody listens any more
            os._exit(0)

    logging.getLogger().addHandler(_LogLines(lambda text: write("warning", text)))
    first = messages.get()
    if first["num_threads"] is not None:
        torch.set_num_threads(first["num_threads"])
    task = TASKS[first["task"]](first["arguments"], lambda text: write("progress", text))
    while True:
        name = messages.get()["call"]
        try:
            write("result", task.calls[name]())
        except (AnserError, MemoryError, RuntimeError, ValueError) as error:
            # RuntimeError is PyTorch's for memory that it cannot get, ValueError the kernels' for
            # variables of the environment.
            write("error", _one_line(error))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AnserError) else f"cannot be measured: {text or 'no memory'}"


def _claim_stdout() -> TextIO:
    """Standard output for our lines alone: whatever else is printed goes to standard error."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return out


def _read(messages: queue.SimpleQueue[Any]) -> None:
    """Ends the process, whatever it is doing, when its input ends."""
    for line in sys.stdin:
        messages.put(json.loads(line))
    os._exit(0)
