"""`anser push NAME`: send a model to a registry."""

from __future__ import annotations

import argparse

from server.cli.connection import connected
from server.cli.transfer import transfer
from server.settings import Settings
from server.store.names import DEFAULT_HOST, ModelName

DESCRIPTION = """\
Send a model to a registry: to Ollama's, or the one that its name begins with.

Ollama's registry takes models into a namespace of yours, and knows you by the key
~/.ollama/id_ed25519 (`ssh-keygen -t ed25519 -N '' -f ~/.ollama/id_ed25519` makes one), whose .pub
file you add at https://ollama.com/settings/keys.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", help="[HOST/]NAMESPACE/MODEL[:TAG]")
    parser.add_argument(
        "--insecure", action="store_true", help="speak plain HTTP to the registry, without TLS"
    )


def execute(arguments: argparse.Namespace) -> int:
    with connected(Settings.from_environment(), "push") as client:
        transfer(client, "push", arguments.model, insecure=arguments.insecure)
    name = ModelName.parse(arguments.model)
    is_ollamas = name.host.lower() == DEFAULT_HOST
    page = f"https://ollama.com/{name.shortest.removesuffix(':latest')}"
    place = page if is_ollamas else str(name)
    print(f"\nYou can find your model at:\n\n\t{place}")
    return 0
