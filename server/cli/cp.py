"""`anser cp SOURCE DESTINATION`: another name for a model."""

from __future__ import annotations

import argparse

from server.cli import argument_types
from server.cli.models import models_of
from server.settings import Settings

DESCRIPTION = """\
Give a model another name too. A model that has that name already is replaced.

A server that answers at $OLLAMA_HOST (127.0.0.1:11434) does it; where none answers on this
machine, it is done in $OLLAMA_MODELS (~/.anser/models).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", type=argument_types.model_name, help="as `anser list` shows it"
    )
    parser.add_argument("destination", metavar="DESTINATION", help="the new name")


def execute(arguments: argparse.Namespace) -> int:
    with models_of(Settings.from_environment()) as models:
        models.copy(arguments.source, arguments.destination)
    print(f"copied '{arguments.source}' to '{arguments.destination}'")
    return 0
