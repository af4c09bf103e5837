"""`anser serve`: the HTTP server, from its address to its end."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from server.cli.errors import CommandError
from server.settings import Settings

_BACKLOG = 2048


def execute(arguments: argparse.Namespace) -> int:
    """Serve until a signal. A wrong address or folder is an error before anything loads."""
    _leave_on_signals()
    settings = Settings.from_environment()
    check_models_folder(settings.models)
    with listen(settings.host, settings.port) as listener:
        settings = replace(settings, port=listener.getsockname()[1])
        # Imported here: the errors above need not wait for torch.
        from server.cli.web_server import serve  # noqa: PLC0415

        return 0 if serve(settings, listener, is_child=arguments.child) else 1


def _leave_on_signals() -> None:
    """SIGINT and SIGTERM end the process without a word.

    While it runs, uvicorn has handlers of its own; once it has shut down it raises what it caught
    again. Nothing is left to do then, and Python would take PyTorch to pieces first.
    """

    def leave(*_: object) -> NoReturn:
        os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def check_models_folder(folder: Path) -> None:
    """Makes the folder. Raises CommandError when models could not be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(
            f"{folder}: cannot keep models there ({_reason(error)}); "
            "make it writable, or set OLLAMA_MODELS to another folder"
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises CommandError naming the address and the remedy."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CommandError(
            f"cannot find the address {host} ({_reason(error)}); "
            "set OLLAMA_HOST to one of this machine"
        ) from error
    # A name such as localhost may stand for both families: clients try the older first.
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere this option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CommandError(
            f"cannot listen on {host}:{port} ({_reason(error)}); "
            "if a server runs there already use that one, or set OLLAMA_HOST to another address"
        ) from error
    return listener


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
