"""`anser create NAME`: make a model from a file or another model, as it is or quantized."""

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
from server.cli.models import is_this_machine, server_of
from server.cli.remote_create import create_remotely
from server.cli.terminal import ProgressBar
from server.modelfile import Command, Modelfile, ModelfileError, decode_modelfile, parse_modelfile
from server.names import InvalidNameError, ModelName
from server.settings import Settings
from server.store import Store


def execute(arguments: argparse.Namespace) -> int:
    bar = ProgressBar(sys.stderr)
    try:
        name = ModelName.parse(arguments.name)
        modelfile, folder = _modelfile(arguments)
        _create(Settings.from_environment(), arguments, modelfile, folder, bar)
    except InvalidNameError as error:
        problem = "use letters, digits, '.', '_' and '-', and at most one :tag"
        raise CommandError(f"invalid model name '{arguments.name}'; {problem}") from error
    except ModelfileError as error:
        where = "stdin" if arguments.file == "-" else arguments.file
        raise CommandError(f"{where}: {error}") from error
    finally:
        bar.finish()
    print(f"Created {name.shortest}; chat with it: anser run {arguments.name}")
    return 0


def _create(
    settings: Settings,
    arguments: argparse.Namespace,
    modelfile: Modelfile,
    folder: Path,
    bar: ProgressBar,
) -> None:
    """In this machine's folder, or by the server on another machine that OLLAMA_HOST names."""
    if not is_this_machine(settings):
        with server_of(settings) as client:
            create_remotely(client, arguments.name, modelfile, folder, arguments.quantize, bar)
        return

    def warn(text: str) -> None:
        bar.finish()
        print(f"Warning: {text}", file=sys.stderr)

    with sigterm_as_exception():
        # Imported here: the errors before it need not wait for torch.
        from server.create import create_model  # noqa: PLC0415

        create_model(
            Store(settings.models),
            ModelName.parse(arguments.name),
            modelfile,
            folder,
            bar.update,
            quantize=arguments.quantize,
            warn=warn,
        )


def _modelfile(arguments: argparse.Namespace) -> tuple[Modelfile, Path]:
    """What to make, and the folder that files in it are relative to."""
    if arguments.source is not None:
        if not arguments.source:
            raise CommandError("--from needs a file or the name of a model")
        modelfile, folder = Modelfile((Command("from", arguments.source),)), Path()
    else:
        modelfile = parse_modelfile(decode_modelfile(_read(arguments.file)))
        folder = Path() if arguments.file == "-" else Path(arguments.file).parent
    if arguments.adapter is None:
        return modelfile, folder
    if not arguments.adapter:
        raise CommandError("--adapter needs a file")
    if modelfile.last("adapter") is not None:
        raise CommandError("--adapter and an ADAPTER line: a model has one initial state")
    adapter = Command("adapter", os.path.abspath(arguments.adapter))
    return Modelfile((*modelfile.commands, adapter)), folder


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        is_default = file == "Modelfile"
        remedy = "write it, or name a model file with --from" if is_default else "check the path"
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
