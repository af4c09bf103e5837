"""The process that tries JSON schemas out: one JSON request a line in, one answer a line out.

A schema comes from anyone who may call the server. Most compile in milliseconds, but a few take
minutes, all memory, or the process with them, and the compiler cannot be interrupted. So each is
compiled here first, over a vocabulary of bytes, in a process of bounded memory that is ended when
it takes too long.

The file is run by its path and imports nothing of the package: it must start fast and stay small.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from typing import Any

import llguidance

# The compiler recurses. Addresses only: memory is taken as far as the stack is used.
_STACK_BYTES = 256 << 20


def problem(schema: dict[str, Any], limits: dict[str, int]) -> str:
    """What the compiler says against the schema; "" for nothing."""
    try:
        tokens = llguidance.LLTokenizer("byte")
        parser_limits = llguidance.LLParserLimits(
            max_items_in_row=limits["max_items_in_row"],
            step_max_items=limits["step_max_items"],
            max_grammar_size=limits["max_grammar_size"],
            verbose_errors=False,
        )
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
        matcher = llguidance.LLMatcher(tokens, grammar, log_level=0, limits=parser_limits)
        if matcher.is_error():
            return str(matcher.get_error())
        # What is too much shows at the beginning of a text, most often behind a brace.
        matcher.compute_bitmask()
        if not matcher.is_error() and matcher.validate_tokens([ord("{")]):
            matcher.consume_tokens([ord("{")])
            matcher.compute_bitmask()
        return str(matcher.get_error()) if matcher.is_error() else ""
    except BaseException as error:  # also what a panic of native code becomes
        return f"{type(error).__name__}: {error}"


def _limit_memory(num_bytes: int) -> None:
    """Where the system can: it has no `resource` on Windows, and macOS ignores the limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def _serve() -> None:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = {"problem": problem(request["schema"], request["limits"])}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def main() -> None:
    _limit_memory(int(sys.argv[1]))
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
