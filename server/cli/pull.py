"""`anser pull NAME`: fetch a model from a registry."""

from __future__ import annotations

import argparse

from server.cli.connection import connected
from server.cli.transfer import transfer
from server.settings import Settings

DESCRIPTION = """\
Fetch a model from a registry, for instance:

  anser pull rwkv-7-g1:2.9b       (short for mollysama/rwkv-7-g1:2.9b, in Ollama's registry)
  anser pull hf.co/USER/REPO:Q8_0

The server at $OLLAMA_HOST does it; where none answers on this machine, one is started for it. A
pull that is interrupted goes on where it was when the same is pulled again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", help="[HOST/][NAMESPACE/]MODEL[:TAG]")
    parser.add_argument(
        "--insecure", action="store_true", help="speak plain HTTP to the registry, without TLS"
    )


def execute(arguments: argparse.Namespace) -> int:
    with connected(Settings.from_environment(), "pull") as client:
        transfer(client, "pull", arguments.model, insecure=arguments.insecure)
    return 0
