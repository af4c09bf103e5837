"""The entry point: runs one command and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from rwkv_core.errors import AnserError
from server.cli.arguments import parse_arguments

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code is 0, or one of the EXIT_ numbers."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        # Only the command's own module is imported: the chat needs no server, the list no chat.
        command = importlib.import_module(f"server.cli.{arguments.command}")
        code: int = command.execute(arguments)
        sys.stdout.flush()
        return code
    except AnserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
