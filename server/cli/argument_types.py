"""Values on the command line: each reader raises ArgumentTypeError with what is wrong."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

from server.wire.durations import DurationError, keep_alive_ns

THINK_VALUES: dict[str, bool | str] = {
    "true": True,
    "false": False,
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
}


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, as the server answers")


def model_name(value: str) -> str:
    """Marks an argument that the names of models complete."""
    return value


def count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, not "{value}"')
    return int(value)


def yes_or_no(value: str) -> bool:
    if value not in ("true", "false"):
        raise argparse.ArgumentTypeError(f'must be true or false, not "{value}"')
    return value == "true"


def seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", value):
        raise argparse.ArgumentTypeError(f'must be seconds, as 1 or 0.5, not "{value}"')
    return float(value)


def think(value: str) -> bool | str:
    if value not in THINK_VALUES:
        known = ", ".join(THINK_VALUES)
        raise argparse.ArgumentTypeError(f'must be one of {known}, not "{value}"')
    return THINK_VALUES[value]


def keep_alive(value: str) -> int | str:
    """Seconds as a number, a Go duration as text: what `keep_alive` takes."""
    try:
        return int(value)
    except ValueError:
        pass
    try:
        keep_alive_ns(value)
    except DurationError as error:
        raise argparse.ArgumentTypeError(f"{error}; write 5m, 1h30m, seconds or -1") from error
    return value


def reply_format(value: str) -> Any:
    """`format` of a request: "json", or a JSON schema as an object."""
    if value == "json":
        return value
    try:
        schema = json.loads(value)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise argparse.ArgumentTypeError(f'must be json or a JSON schema, not "{value}"')
    return schema


def spell_out_think(argv: Sequence[str]) -> list[str]:
    """`argv` with a bare `--think` spelled out, so that it takes no word of the prompt."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = ["--think=true" if word == "--think" else word for word in argv[:end]]
    return [*options, *argv[end:]]
