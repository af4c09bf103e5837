"""Tries a JSON schema out in a process of its own, before the server compiles it."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from rwkv_core.errors import GrammarError
from rwkv_core.worker_process import WorkerError, WorkerProcess

# Real schemas take milliseconds; the first one waits for the process to start.
MAX_SECONDS = 20.0
# Of addresses, of which the stack and the compiler's heaps take several hundred megabytes.
_MAX_MEMORY_BYTES = 2 << 30
_MAX_REMEMBERED = 1024
# A pattern stands in the compiler's words, whole.
_MAX_WORDS_CHARS = 400


class CompilerLimits(NamedTuple):
    """Those of llguidance's LLParserLimits that differ from its defaults."""

    max_items_in_row: int
    step_max_items: int
    max_grammar_size: int


class SchemaTrial:
    """A process for all threads, which take turns, and what it has said of the last schemas."""

    def __init__(self, limits: CompilerLimits, max_seconds: float = MAX_SECONDS) -> None:
        self._limits = limits._asdict()
        self._process = WorkerProcess(
            Path(__file__).with_name("schema_worker.py"),
            max_seconds=max_seconds,
            max_memory_bytes=_MAX_MEMORY_BYTES,
        )
        self._problems: OrderedDict[bytes, str] = OrderedDict()
        self._lock = Lock()

    def check(self, schema: Mapping[str, Any]) -> None:
        """Raises GrammarError in the compiler's words, or when it takes too long or too much."""
        key = hashlib.sha256(json.dumps(schema).encode()).digest()
        with self._lock:
            problem = self._problems.get(key)
        if problem is None:
            problem = self._ask(schema)
            with self._lock:
                self._problems[key] = problem
                if len(self._problems) > _MAX_REMEMBERED:
                    self._problems.popitem(last=False)
        if problem:
            raise GrammarError(problem)

    def close(self) -> None:
        self._process.close()

    def _ask(self, schema: Mapping[str, Any]) -> str:
        try:
            answer = self._process.ask({"schema": dict(schema), "limits": self._limits})
        except WorkerError as error:
            raise GrammarError(f"{error}, to compile; simplify it") from error
        return one_line(answer["problem"])


def one_line(text: str) -> str:
    """The compiler's words, cut to what anyone reads."""
    words = " ".join(text.strip().partition("\n<state>")[0].split())
    if len(words) <= _MAX_WORDS_CHARS:
        return words
    # What is wrong stands at the end, behind what it is wrong with.
    half = _MAX_WORDS_CHARS // 2
    return f"{words[:half]} … {words[-half:]}"
