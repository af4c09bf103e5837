"""Which server a command talks to: the one at OLLAMA_HOST, or one of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from server.cli.client import Client
from server.cli.models import is_this_machine, no_server
from server.cli.private_server import private_server
from server.cli.terminal import Spinner, has_colour
from server.settings import Settings


@contextmanager
def connected(settings: Settings, purpose: str = "chat") -> Iterator[Client]:
    """A client of a server that answers; `purpose` is what the user wants of it.

    Where none answers on this machine, a private one is started and ended with the block.
    Raises CommandError when the address is elsewhere: no server of this machine can be meant then.
    """
    with ExitStack() as stack:
        client = stack.enter_context(Client(settings.url))
        if not client.is_up():
            if not is_this_machine(settings):
                raise no_server(settings.url)
            client = stack.enter_context(Client(_start_private_server(stack, purpose)))
        yield client


def _start_private_server(stack: ExitStack, purpose: str) -> str:
    note = f"no server is running; starting one for this {purpose}"
    if not has_colour(sys.stderr):
        print(note, file=sys.stderr)
    with Spinner(sys.stderr, note):
        return stack.enter_context(private_server()).url
