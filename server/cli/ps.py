"""`anser ps`: the models that are in memory."""

from __future__ import annotations

import argparse
import json
import time

from server.cli import argument_types
from server.cli.client import Json
from server.cli.list import ID_LENGTH
from server.cli.models import server_of
from server.cli.moments import seconds_of
from server.cli.table import print_table
from server.human import human_bytes, human_until
from server.settings import Settings

_HEADER = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")


DESCRIPTION = """\
List the models that the server at $OLLAMA_HOST has in memory, the longest to live first.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="of the names")
    argument_types.add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    prefix = arguments.prefix.lower()
    with server_of(Settings.from_environment()) as client:
        models = [each for each in client.running() if each["name"].lower().startswith(prefix)]
    if arguments.json:
        print(json.dumps({"models": models}))
        return 0
    print_table(_HEADER, [_row(each) for each in models])
    return 0


def _row(model: Json) -> tuple[str, ...]:
    remaining_s = seconds_of(model.get("expires_at", "")) - time.time()
    return (
        model["name"],
        model["digest"][:ID_LENGTH],
        human_bytes(model["size"]),
        processor(model["size"], model.get("size_vram", 0)),
        str(model.get("context_length", 0)),
        human_until(remaining_s),
    )


def processor(size: int, size_vram: int) -> str:
    """Where a model's memory is, in Ollama's words."""
    if size_vram == 0:
        return "100% CPU"
    if size_vram == size:
        return "100% GPU"
    if size_vram > size or size == 0:
        return "Unknown"
    percent = round((size - size_vram) / size * 100)
    return f"{percent}%/{100 - percent}% CPU/GPU"
