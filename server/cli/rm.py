"""`anser rm MODEL...`: delete models. The first one that cannot be deleted ends it."""

from __future__ import annotations

import argparse

from server.cli import argument_types
from server.cli.models import models_of
from server.settings import Settings

DESCRIPTION = """\
Delete models. Files that no other model has are deleted with them; replies in progress go on.

A server that answers at $OLLAMA_HOST (127.0.0.1:11434) does it; where none answers on this
machine, it is done in $OLLAMA_MODELS (~/.anser/models).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        metavar="MODEL",
        type=argument_types.model_name,
        nargs="+",
        help="as `anser list` shows it",
    )


def execute(arguments: argparse.Namespace) -> int:
    with models_of(Settings.from_environment()) as models:
        for name in arguments.models:
            models.delete(name)
            print(f"deleted '{name}'")
    return 0
