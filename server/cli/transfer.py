"""Showing a pull or a push while it goes on."""

from __future__ import annotations

import sys
from contextlib import closing

from server.cli.client import Client
from server.cli.terminal import ProgressBar


def transfer(client: Client, verb: str, model: str, *, insecure: bool) -> None:
    """Has the server "pull" or "push" the model. Raises ServerError when that fails.

    An interrupt closes the connection, which ends the transfer.
    """
    bar = ProgressBar(sys.stderr)
    try:
        with closing(client.transfer(verb, model, insecure=insecure)) as steps:
            for step in steps:
                done, total = int(step.get("completed", 0)), int(step.get("total", 0))
                bar.update(str(step.get("status", "")), done, total)
    finally:
        bar.finish()
