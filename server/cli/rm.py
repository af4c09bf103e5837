"""`anser rm MODEL...`: delete models. The first one that cannot be deleted ends it."""

from __future__ import annotations

import argparse

from server.cli.models import models_of
from server.settings import Settings


def execute(arguments: argparse.Namespace) -> int:
    with models_of(Settings.from_environment()) as models:
        for name in arguments.models:
            models.delete(name)
            print(f"deleted '{name}'")
    return 0
