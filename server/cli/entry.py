"""The entry point: runs one command and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rwkv_core.errors import AnserError
from server.cli.arguments import command_module, parse_arguments

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code is 0, or one of the EXIT_ numbers."""
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # a pipe that is closed shows itself here, also after --help
    except AnserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE


def _run(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    # Only the command's own module is imported: the chat needs no server, the list no chat.
    return command_module(arguments.command).execute(arguments)
