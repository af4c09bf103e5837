"""The measuring process, as the process that asked for it sees it.

One process a model: its peak memory is then that model's alone, and variables that cap the threads
and the instruction set are read by everything in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from rwkv_core.bench.options import BenchError, Runtime

Progress = Callable[[str], None]  # is told what is being done


class Listener(Protocol):
    """Who follows a measurement."""

    def show(self, text: str) -> None:
        """What is being done now."""

    def warn(self, text: str) -> None:
        """A warning of the engine's log."""


# The child imports from exactly the folders that this process imports from; `-m` would put the
# current folder first. Ctrl-C in the terminal is for this process, which then ends the child.
_CHILD_CODE = """\
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv.pop(1))
from rwkv_core.bench.worker import main
main()
"""

# PyTorch and its oneDNN have caps of their own on x86; they count where PyTorch does the products.
_PYTORCH_CAPS = {
    "avx512": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


class MeasuringProcess:
    """A child that does one task, call by call. It ends with the `with` block, or with us.

    `task` is a name of `worker.TASKS`, `arguments` are what that task is built from.
    """

    def __init__(
        self, task: str, arguments: Mapping[str, Any], runtime: Runtime, listener: Listener
    ) -> None:
        self._listener = listener
        paths = [path or os.getcwd() for path in sys.path]
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD_CODE, json.dumps(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_variables(runtime)},
            text=True,
            encoding="utf-8",
        )
        self._send({"task": task, "num_threads": runtime.num_threads, "arguments": arguments})

    def __enter__(self) -> MeasuringProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()  # it holds nothing that outlives it
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # by what could not be sent any more
                stream.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def call(self, name: str) -> Any:
        """The result of one of the task's methods. Raises BenchError saying why there is none."""
        self._send({"call": name})
        assert self._child.stdout is not None
        for line in self._child.stdout:
            message = json.loads(line)
            if "progress" in message:
                self._listener.show(message["progress"])
            elif "warning" in message:
                self._listener.warn(message["warning"])
            elif "error" in message:
                raise BenchError(message["error"])
            else:
                return message["result"]
        raise BenchError(_how_it_ended(self._child.wait()))

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # if it has ended, reading its answer finds out how
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()


def _variables(runtime: Runtime) -> dict[str, str]:
    variables = {}
    if runtime.num_threads is not None:
        variables["ANSER_THREADS"] = str(runtime.num_threads)
    if runtime.isa is not None:
        variables |= {"ANSER_ISA": runtime.isa, **_PYTORCH_CAPS.get(runtime.isa, {})}
    return variables


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return (
            "the measuring process was killed, as systems do when memory runs out; "
            "close other programs, or take a smaller model or quantization"
        )
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"the measuring process ended {how} before it was done; see what it wrote above"
