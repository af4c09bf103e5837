"""`anser serve`: the HTTP server, from its address to its end."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from server.cli.errors import CommandError
from server.cli.folders import check_models_folder, reason
from server.settings.model import SettingsError
from server.settings.sources import Given, read_settings
from server.settings.table import FILE_VARIABLE, IGNORED, SETTINGS, Kind, Setting

DESCRIPTION = f"""\
Serve Ollama's API until Ctrl-C. A flag goes before a variable of the environment, that before a
line of the file: --config FILE, ${FILE_VARIABLE}, or ~/.anser/server.toml. The file
configs/server.toml documents every setting. Each is shown with its variable and its present value.
"""

_BACKLOG = 2048
_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    try:
        given: Mapping[str, Given] = read_settings().given
    except SettingsError as error:  # the help must be there to read all the same
        given = {}
        parser.epilog = f"The present values are not shown: {error}"
    parser.add_argument("--config", metavar="FILE", default="", help="file of settings")
    for setting in SETTINGS:
        about = f"{setting.help}. {_present(setting, given)}"
        if setting.flag and setting.kind is Kind.SWITCH:
            parser.add_argument(
                setting.flag,
                dest=setting.key,
                nargs="?",
                const="1",
                metavar="0|1",
                help=about.replace("%", "%%"),
            )
        elif setting.flag:
            parser.add_argument(
                setting.flag,
                dest=setting.key,
                metavar=setting.metavar,
                help=about.replace("%", "%%"),
            )
        else:
            parser.description = f"{parser.description}\n{textwrap.fill(about, _WIDTH)}\n"
    ignored = f"Variables of Ollama's that are accepted and change nothing: {', '.join(IGNORED)}."
    parser.epilog = "\n\n".join(filter(None, (parser.epilog, textwrap.fill(ignored, _WIDTH))))
    # For `anser run`: print the address alone, end when standard input does.
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)


def _present(setting: Setting, given: Mapping[str, Given]) -> str:
    """The setting's variable, with its value and who gave it."""
    if setting.key not in given:
        return setting.variable
    found = given[setting.key]
    text = found.text or "none"
    if setting.is_secret and found.text:
        text = "set"
    return f"{setting.variable} = {text} ({found.origin.value})"


def execute(arguments: argparse.Namespace) -> int:
    """Serve until a signal. A wrong address or folder is an error before anything loads."""
    _leave_on_signals()
    flags = {each.key: getattr(arguments, each.key) for each in SETTINGS if each.flag}
    settings = read_settings(
        {key: text for key, text in flags.items() if text}, file=arguments.config
    ).settings
    os.environ.update(settings.engine_variables)
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


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises CommandError naming the address and the remedy."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CommandError(
            f"cannot find the address {host} ({reason(error)}); "
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
            f"cannot listen on {host}:{port} ({reason(error)}); "
            "if a server runs there already use that one, or set OLLAMA_HOST to another address"
        ) from error
    return listener
