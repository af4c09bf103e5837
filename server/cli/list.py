"""`anser list`: the models that are here."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from server.cli import argument_types
from server.cli.client import Client
from server.cli.human import human_age, human_bytes
from server.manifests import DamagedModelError
from server.settings import Settings
from server.store import Store

_HEADER = ("NAME", "ID", "SIZE", "MODIFIED")
_ID_LENGTH = 12
_FAMILY = "rwkv7"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    digest: str
    size: int
    modified_s: float  # since 1970


DESCRIPTION = """\
List the models in $OLLAMA_MODELS (~/.anser/models), the newest first; a server need not run.
Where $OLLAMA_HOST names another machine, the server there is asked for its models instead.
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


def execute(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    is_remote = not _is_this_machine(settings)
    rows = rows_of_server(settings.url) if is_remote else rows_of_store(Store(settings.models))
    prefix = arguments.prefix.lower()
    shown = [row for row in rows if row.name.lower().startswith(prefix)]
    shown.sort(key=lambda row: row.modified_s, reverse=True)
    _print_table(shown)
    if not shown and not prefix and sys.stderr.isatty():
        print("No models yet; `anser run rwkv7-demo` brings a small one.", file=sys.stderr)
    return 0


def _is_this_machine(settings: Settings) -> bool:
    return settings.listens_on_loopback or settings.host in ("0.0.0.0", "::")


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
            modified_s = _seconds(model.get("modified_at", ""))
            yield Row(model["name"], model["digest"], model["size"], modified_s)


def _seconds(text: str) -> float:
    """Seconds since 1970 of RFC 3339, whatever the number of digits in its fraction."""
    moment, _, zone = text.partition(".")
    if zone:
        zone = zone.lstrip("0123456789")
    try:
        parsed = datetime.fromisoformat(f"{moment}{zone}".replace("Z", "+00:00"))
    except ValueError:
        return 0.0
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()


def _print_table(rows: list[Row]) -> None:
    now = time.time()
    cells = [_HEADER] + [
        (row.name, row.digest[:_ID_LENGTH], human_bytes(row.size), human_age(now - row.modified_s))
        for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER))]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("    ".join(padded).rstrip())
