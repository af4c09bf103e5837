"""`anser cp SOURCE DESTINATION`: another name for a model."""

from __future__ import annotations

import argparse

from server.cli.models import models_of
from server.settings import Settings


def execute(arguments: argparse.Namespace) -> int:
    with models_of(Settings.from_environment()) as models:
        models.copy(arguments.source, arguments.destination)
    print(f"copied '{arguments.source}' to '{arguments.destination}'")
    return 0
