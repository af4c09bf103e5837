"""`anser list`: the models that are here."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from server.cli import argument_types
from server.cli.client import Client, Json
from server.cli.models import is_this_machine, no_server
from server.cli.moments import seconds_of
from server.cli.table import print_table
from server.human import human_age, human_bytes
from server.settings import Settings
from server.store.manifests import DamagedModelError
from server.store.store import Store
from server.wire.go_text import rfc3339

_HEADER = ("NAME", "ID", "SIZE", "MODIFIED")
ID_LENGTH = 12
_FAMILY = "rwkv7"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    digest: str
    size: int
    modified_s: float  # since 1970


DESCRIPTION = """\
List the models of the server at $OLLAMA_HOST, the newest first. Where none answers on this
machine, those in $OLLAMA_MODELS (~/.anser/models) are listed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prefix",
        metavar="PREFIX",
        type=argument_types.model_name,
        nargs="?",
        default="",
        help="of the names",
    )
    argument_types.add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    rows = _rows(Settings.from_environment())
    prefix = arguments.prefix.lower()
    shown = [row for row in rows if row.name.lower().startswith(prefix)]
    shown.sort(key=lambda row: row.modified_s, reverse=True)
    if arguments.json:
        print(json.dumps({"models": [_json(row) for row in shown]}))
        return 0
    now = time.time()
    print_table(_HEADER, [_cells(row, now) for row in shown])
    if not shown and not prefix and sys.stderr.isatty():
        print("No models yet; `anser run rwkv7-demo` brings a small one.", file=sys.stderr)
    return 0


def _rows(settings: Settings) -> Iterable[Row]:
    """Those of the server that answers; of this machine's folder where none does."""
    with Client(settings.url) as client:
        is_up = client.is_up()
    if is_up:
        return rows_of_server(settings.url)
    if is_this_machine(settings):
        return rows_of_store(Store(settings.models))
    raise no_server(settings.url)


def _json(row: Row) -> Json:
    return {
        "name": row.name,
        "modified_at": rfc3339(int(row.modified_s * 1e9)),
        "size": row.size,
        "digest": row.digest,
    }


def _cells(row: Row, now: float) -> tuple[str, ...]:
    size, age = human_bytes(row.size), human_age(now - row.modified_s)
    return (row.name, row.digest[:ID_LENGTH], size, age)


def rows_of_store(store: Store) -> Iterator[Row]:
    """RWKV-7 models only, from their manifests; damaged ones are left out with a warning."""
    for name in store.names():
        try:
            manifest = store.read_manifest(name)
            if manifest is None:
                continue
            config = json.loads(store.blob_path(manifest.config.digest).read_bytes())
            if config.get("model_family") not in (_FAMILY, "", None):
                continue
        except (DamagedModelError, OSError, ValueError, AttributeError) as error:
            store.warn_once(store.manifest_path(name), f"damaged ({error})")
            continue
        yield Row(name.shortest, manifest.digest, manifest.size, manifest.modified_ns / 1e9)


def rows_of_server(url: str) -> Iterator[Row]:
    with Client(url) as client:
        for model in client.list_models():
            modified_s = seconds_of(model.get("modified_at", ""))
            yield Row(model["name"], model["digest"], model["size"], modified_s)
