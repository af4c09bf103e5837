"""The grammar and the help of the commands that look after models."""

from __future__ import annotations

import argparse
from collections.abc import Callable

# (name, one line of help, description) -> the command's parser
Add = Callable[[str, str, str], argparse.ArgumentParser]

_WHERE = """\
A server that answers at $OLLAMA_HOST (127.0.0.1:11434) does it; where none answers on this
machine, it is done in $OLLAMA_MODELS (~/.anser/models).
"""
_PS = """\
List the models that the server at $OLLAMA_HOST has in memory, the longest to live first.
"""
_STOP = """\
Take a model out of the server's memory, when the replies that it is giving have ended.
"""
_SHOW = f"""\
Show what a model is: a table, or one of its texts.

{_WHERE}"""
_CP = f"""\
Give a model another name too. A model that has that name already is replaced.

{_WHERE}"""
_RM = f"""\
Delete models. Files that no other model has are deleted with them; replies in progress go on.

{_WHERE}"""


def add_model_commands(add: Add) -> None:
    """Adds `ps`, `stop`, `show`, `cp` and `rm`."""
    parser = add("ps", "list the models that are in memory", _PS)
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="of the names")
    add_json(parser)
    parser = add("stop", "take a model out of memory", _STOP)
    parser.add_argument("model", metavar="MODEL", help="as `anser ps` shows it")
    _add_show(add)
    parser = add("cp", "copy a model", _CP)
    parser.add_argument("source", metavar="SOURCE", help="as `anser list` shows it")
    parser.add_argument("destination", metavar="DESTINATION", help="the new name")
    parser = add("rm", "delete models", _RM)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="as `anser list` shows it")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, as the server answers")


def _add_show(add: Add) -> None:
    parser = add("show", "show what a model is", _SHOW)
    parser.add_argument("model", metavar="MODEL", help="as `anser list` shows it")
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
    add_json(parser)
