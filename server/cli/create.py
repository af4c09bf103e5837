"""`anser create NAME -f Modelfile`: make a model from a file or from another model."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from server.cli.errors import CommandError
from server.cli.terminal import ProgressBar
from server.modelfile import ModelfileError, decode_modelfile, parse_modelfile
from server.names import InvalidNameError, ModelName
from server.settings import Settings
from server.store import Store


def execute(arguments: argparse.Namespace) -> int:
    is_stdin = arguments.file == "-"
    folder = Path() if is_stdin else Path(arguments.file).parent
    store = Store(Settings.from_environment().models)
    bar = ProgressBar(sys.stderr)
    try:
        name = ModelName.parse(arguments.name)
        modelfile = parse_modelfile(decode_modelfile(_read(arguments.file)))
        with sigterm_as_exception():
            # Imported here: the errors above need not wait for torch.
            from server.create import create_model  # noqa: PLC0415

            create_model(store, name, modelfile, folder, bar.update)
    except InvalidNameError as error:
        problem = "use letters, digits, '.', '_' and '-', and at most one :tag"
        raise CommandError(f"invalid model name '{arguments.name}'; {problem}") from error
    except ModelfileError as error:
        raise CommandError(f"{'stdin' if is_stdin else arguments.file}: {error}") from error
    finally:
        bar.finish()
    print(f"Created {name.shortest}; chat with it: anser run {arguments.name}")
    return 0


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        remedy = "write it, or name another with -f" if file == "Modelfile" else "check the path"
        raise CommandError(f"{file}: {os.strerror(error.errno or 0)}; {remedy}") from error


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Lets half-written files be removed when the process is told to end."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
