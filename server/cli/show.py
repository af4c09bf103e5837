"""`anser show`, and what `/show` prints in a chat, from the server's answer to `/api/show`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from server.cli import argument_types
from server.cli.chat import Chat
from server.cli.client import Json
from server.cli.errors import CommandError
from server.cli.models import models_of
from server.settings import Settings
from server.wire.go_text import go_value

_NAME_WIDTH = 30  # of parameter names, as the server pads them
_NUM_HEAD_LINES = 2
_LIST_WIDTH = 10  # of the part of a long list that is shown
_TOPICS_WITH_LINE_END = ("license", "modelfile", "parameters")


DESCRIPTION = """\
Show what a model is: a table, or one of its texts.

A server that answers at $OLLAMA_HOST (127.0.0.1:11434) does it; where none answers on this
machine, it is done in $OLLAMA_MODELS (~/.anser/models).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", type=argument_types.model_name, help="as `anser list` shows it"
    )
    for topic, help in (
        ("license", "its license"),
        ("modelfile", "a Modelfile that makes it again"),
        ("parameters", "its parameters"),
        ("system", "its system message"),
        ("template", "its prompt template"),
    ):
        parser.add_argument(
            f"--{topic}", dest="topics", action="append_const", const=topic, help=f"only {help}"
        )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="its metadata and tensors, too"
    )
    argument_types.add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    topics = arguments.topics or []
    if len(set(topics)) > 1:
        raise CommandError(
            "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' "
            "can be specified"
        )
    with models_of(Settings.from_environment()) as models:
        info = models.show(arguments.model, verbose=arguments.verbose)
    if arguments.json:
        print(json.dumps(info))
    elif topics:
        end = "\n" if topics[0] in _TOPICS_WITH_LINE_END else ""
        sys.stdout.write(f"{info.get(topics[0]) or ''}{end}")
    else:
        sys.stdout.write(describe(info, verbose=arguments.verbose))
    return 0


def show(topic: str, info: Json, chat: Chat) -> str | None:
    """The text for one topic; None when there is no such topic."""
    if topic == "info":
        return describe(info)
    if topic == "parameters":
        return _parameters(info, chat)
    texts = {
        "license": (info.get("license"), "No license was specified for this model."),
        "modelfile": (info.get("modelfile"), "No Modelfile is known for this model."),
        "system": (
            chat.system or info.get("system"),
            "No system message was specified for this model.",
        ),
        "template": (info.get("template"), "No prompt template was specified for this model."),
    }
    if topic not in texts:
        return None
    text, otherwise = texts[topic]
    return f"{text or otherwise}\n"


def describe(info: Json, *, verbose: bool = False) -> str:
    """Ollama's tables: the model, what it can do, its parameters, with `verbose` its metadata and
    tensors, the heads of its long texts.
    """
    parts = [_table("Model", _model_rows(info))]
    if capabilities := info.get("capabilities"):
        parts.append(_table("Capabilities", [[each] for each in capabilities]))
    if parameters := info.get("parameters"):
        parts.append(_table("Parameters", [each.split(maxsplit=1) for each in _lines(parameters)]))
    if verbose:
        metadata = sorted((info.get("model_info") or {}).items())
        parts.append(_table("Metadata", [[key, _metadata(value)] for key, value in metadata]))
        tensors = info.get("tensors") or []
        parts.append(_table("Tensors", [_tensor(each) for each in tensors]))
    for title in ("System", "License"):
        lines = _lines(info.get(title.lower()) or "")
        rest = ["..."] if len(lines) > _NUM_HEAD_LINES else []
        if lines:
            parts.append(_table(title, [[each] for each in lines[:_NUM_HEAD_LINES] + rest]))
    return "\n".join(parts)


def _model_rows(info: Json) -> list[list[str]]:
    details, metadata = info.get("details") or {}, info.get("model_info") or {}
    architecture = metadata.get("general.architecture") or details.get("family")
    rows = {
        "architecture": architecture,
        "parameters": details.get("parameter_size"),
        "context length": metadata.get(f"{architecture}.context_length"),
        "embedding length": metadata.get(f"{architecture}.embedding_length"),
        "quantization": details.get("quantization_level"),
        "requires": info.get("requires"),
    }
    return [[name, str(value)] for name, value in rows.items() if value not in (None, "")]


def _parameters(info: Json, chat: Chat) -> str:
    lines = ["Model defined parameters:"]
    given = _lines(info.get("parameters") or "")
    lines += [f"  {each}" for each in given]
    if not given:
        lines.append("  No additional parameters were specified for this model.")
    if chat.options:
        lines += ["", "User defined parameters:"]
        lines += [f"  {name:<{_NAME_WIDTH}} {value}" for name, value in chat.options.items()]
    return "\n".join(lines) + "\n"


def _lines(text: str) -> list[str]:
    return [each.strip() for each in text.split("\n") if each.strip()]


def _metadata(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return go_value(value)
    items = [each if isinstance(each, str) else go_value(each) for each in value]
    width, num_shown = 1, 0
    for item in items:
        width += len(item) + (2 if num_shown else 0)
        if width > _LIST_WIDTH and num_shown:
            break
        num_shown += 1
    num_hidden = len(items) - num_shown
    return f"[{' '.join(items[:num_shown])}" + (f" ...+{num_hidden} more]" if num_hidden else "]")


def _tensor(tensor: Json) -> list[str]:
    return [tensor["name"], tensor["type"], f"[{' '.join(map(str, tensor['shape']))}]"]


def _table(title: str, rows: Iterable[Sequence[str]]) -> str:
    cells = [list(row) for row in rows]
    num_columns = max((len(row) for row in cells), default=0)
    # What stands last in its row has no width: a long text does not push the others away.
    widths = [
        max((len(row[column]) for row in cells if len(row) > column + 1), default=0)
        for column in range(num_columns)
    ]
    lines = [
        "    " + "    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        for row in cells
    ]
    return "\n".join([f"  {title}", *(line.rstrip() for line in lines)]) + "\n"
