"""`anser stop MODEL`: out of memory with it, when its replies have ended."""

from __future__ import annotations

import argparse

from server.cli.errors import CommandError, ServerError
from server.cli.models import server_of
from server.settings import Settings


def execute(arguments: argparse.Namespace) -> int:
    with server_of(Settings.from_environment()) as client:
        try:
            client.unload(arguments.model)
        except ServerError as error:
            if error.status == 404:
                raise CommandError(f'couldn\'t find model "{arguments.model}" to stop') from error
            raise
    return 0
