"""`anser __complete WORD...`: how the last word, of which some is typed, may go on.

Read off the parsers of the commands themselves. Nothing is printed where files are meant: shells
complete those better.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from rwkv_core.errors import AnserError
from server.cli.argument_types import model_name
from server.cli.arguments import COMMANDS, command_parser
from server.settings import Settings
from server.store.store import Store

# An empty word, as PowerShell has to spell it.
_EMPTY = '""'


def execute(arguments: argparse.Namespace) -> int:
    for candidate in candidates(arguments.words):
        print(candidate)
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of `words` may become, sorted; they stand behind `anser`."""
    *before, last = words or [""]
    last = "" if last == _EMPTY else last
    return sorted({each for each in _possible(before, last) if each.startswith(last)})


def _possible(before: Sequence[str], last: str) -> Iterable[str]:
    names = [name for row in COMMANDS for name in (row.name, *row.aliases)]
    if not before:
        return [*names, "help", "--help", "--version"]
    if before[0] == "help":
        return names if len(before) == 1 else []
    parser = command_parser(before[0])
    return _words_of(parser, before[1:], last) if parser else []


def _words_of(parser: argparse.ArgumentParser, before: Sequence[str], last: str) -> Iterable[str]:
    """What may stand behind the words `before` of a command."""
    options = parser._option_string_actions  # argparse keeps them nowhere else
    if before and (option := options.get(before[-1])) and option.nargs != 0:
        return _values(option)
    if last.startswith("-"):
        hidden = argparse.SUPPRESS
        return [name for name, option in options.items() if option.help is not hidden]
    positionals = parser._get_positional_actions()
    if not positionals:
        return []
    at = min(sum(not word.startswith("-") for word in before), len(positionals) - 1)
    return _values(positionals[at])


def _values(action: argparse.Action) -> Iterable[str]:
    if action.choices:
        return [str(each) for each in action.choices]
    return _models() if action.type is model_name else []


def _models() -> list[str]:
    """The names of the store. A shell that completes must not be told about errors."""
    try:
        return [name.shortest for name in Store(Settings.from_environment().models).names()]
    except (AnserError, OSError):
        return []
