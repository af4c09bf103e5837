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

from server.cli import argument_types
from server.cli.connection import connected
from server.cli.errors import CommandError
from server.cli.models import is_this_machine, server_of
from server.cli.remote_create import create_remotely
from server.cli.terminal import ProgressBar
from server.cli.transfer import transfer
from server.creating.modelfile import (
    Command,
    Modelfile,
    ModelfileError,
    decode_modelfile,
    parse_modelfile,
)
from server.settings import Settings
from server.store.names import InvalidNameError, ModelName
from server.store.store import Store

DESCRIPTION = """\
Make a model in this machine's models folder ($OLLAMA_MODELS, default ~/.anser/models). Where
$OLLAMA_HOST names another machine, its files are sent there, and the server there makes it.

FROM in the Modelfile names a file or folder (.pth, safetensors, GGUF, rwkv.cpp .bin), relative
to the Modelfile, or a model, which is pulled if it is not there. Any of PARAMETER, SYSTEM,
TEMPLATE, MESSAGE and LICENSE may follow, and ADAPTER with a tuned initial state (a time_state
file, .pth or safetensors). A server need not run; one that runs answers the next request with the
new model, and forgets one of that name that was in its memory as it would forget any that is not
used.

TYPE, from the largest to the smallest: q8_0, q6_k, q5_1, q5_k_m, q5_0, q4_k_m, q4_0.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the new model, with or without a :tag")
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "-f",
        "--file",
        metavar="MODELFILE",
        default="Modelfile",
        help="default: ./Modelfile; - is stdin",
    )
    sources.add_argument(
        "--from",
        dest="source",
        metavar="FILE|NAME",
        type=argument_types.model_name,
        help="as a Modelfile with only this FROM",
    )
    parser.add_argument(
        "--adapter", metavar="FILE", help="a tuned initial state, as an ADAPTER line names it"
    )
    parser.add_argument(
        "-q", "--quantize", metavar="TYPE", help="store the weights with fewer bits, as TYPE"
    )


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

    def fetch(model: str) -> None:
        with connected(settings, "pull") as client:
            transfer(client, "pull", model, insecure=False)

    with sigterm_as_exception():
        # Imported here: the errors before it need not wait for torch.
        from server.creating.create import create_model  # noqa: PLC0415

        create_model(
            Store(settings.models),
            ModelName.parse(arguments.name),
            modelfile,
            folder,
            bar.update,
            quantize=arguments.quantize,
            fetch=fetch,
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
