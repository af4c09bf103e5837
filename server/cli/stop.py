"""`anser stop MODEL`: out of memory with it, when its replies have ended."""

from __future__ import annotations

import argparse

from server.cli import argument_types
from server.cli.errors import CommandError, ServerError
from server.cli.models import server_of
from server.settings import Settings

DESCRIPTION = """\
Take a model out of the server's memory, when the replies that it is giving have ended.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", type=argument_types.model_name, help="as `anser ps` shows it"
    )


def execute(arguments: argparse.Namespace) -> int:
    with server_of(Settings.from_environment()) as client:
        try:
            client.unload(arguments.model)
        except ServerError as error:
            if error.status == 404:
                raise CommandError(f'couldn\'t find model "{arguments.model}" to stop') from error
            raise
    return 0
