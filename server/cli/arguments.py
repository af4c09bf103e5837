"""The command line's grammar: which commands there are, and how their own words are found.

Each command is a module of `server.cli` with DESCRIPTION, `add_arguments(parser)` and
`execute(arguments)`; a row of COMMANDS makes it known. Only the module of the command that is
asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple, NoReturn, Protocol, cast

from server.cli.argument_types import spell_out_think

EXIT_USAGE = 2

_EPILOG = """\
`anser help COMMAND` says more about one. `anser run rwkv7-demo` talks to the small model that comes
along. Models are kept in $OLLAMA_MODELS (~/.anser/models); the server's address is $OLLAMA_HOST
(127.0.0.1:11434); `anser serve --help` lists all that can be set.
"""


class CommandRow(NamedTuple):
    name: str  # of its module, too
    help: str
    aliases: tuple[str, ...] = ()


COMMANDS = (
    CommandRow("serve", "start the server", ("start",)),
    CommandRow("run", "chat with a model, or ask it one question"),
    CommandRow("pull", "fetch a model from a registry"),
    CommandRow("push", "send a model to a registry"),
    CommandRow("create", "make a model from a file or a Modelfile"),
    CommandRow("show", "show what a model is"),
    CommandRow("list", "list the models", ("ls",)),
    CommandRow("ps", "list the models that are in memory"),
    CommandRow("stop", "take a model out of memory"),
    CommandRow("cp", "copy a model"),
    CommandRow("rm", "delete models"),
    CommandRow("bench", "measure speed, memory and quality of models"),
    CommandRow("completion", "print a script that completes commands in a shell"),
)


class CommandModule(Protocol):
    """What a module of `server.cli` offers that carries out a command."""

    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def execute(self, arguments: argparse.Namespace) -> int: ...


def command_module(name: str) -> CommandModule:
    return cast(CommandModule, importlib.import_module(f"server.cli.{name}"))


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The words of a command line; `command` is the name of the command that carries it out.

    Leaves with exit code 2 and one line for wrong usage, with 0 after --help and --version, and
    after the help that no words at all get.
    """
    if argv and argv[0] == "__complete":
        return argparse.Namespace(command="complete_words", words=argv[1:])
    if argv and argv[0] == "help":
        argv = [*argv[1:2], "--help"]
    parser = _parser()
    if argv and not argv[0].startswith("-"):
        _check_command(parser, argv[0])
    parsed, unknown = parser.parse_known_args(spell_out_think(argv or ["--help"]))
    if unknown or "command" not in parsed:
        parser.error(_unexpected(unknown) if unknown else "which command?")
    return parsed


def _check_command(parser: argparse.ArgumentParser, word: str) -> None:
    known = [name for row in COMMANDS for name in (row.name, *row.aliases)]
    if word in known:
        return
    # Imported here: only those who mistype wait for it.
    import difflib  # noqa: PLC0415

    similar = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean `anser {similar[0]}`?" if similar else ""
    parser.error(f'unknown command "{word}"{hint}')


def _unexpected(words: Sequence[str]) -> str:
    """What is wrong with words that nothing takes. argparse also counts those behind a flag that it
    does not know, so that the flags are what is wrong if there are any.
    """
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    return f"unknown flag: {flags[0]}" if flags else f"unexpected: {' '.join(words)}"


def command_parser(word: str) -> argparse.ArgumentParser | None:
    """The parser of one command by name or alias; None when there is none."""
    row = next((row for row in COMMANDS if word in (row.name, *row.aliases)), None)
    if row is None:
        return None
    parser = _CommandParser(prog=f"anser {word}", command=row.name)
    parser.fill()
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="anser",
        description="A local server that speaks Ollama's API and runs RWKV-7 language models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", "-v", action=_ShowVersion, help="show the version and leave")
    commands = parser.add_subparsers(
        metavar="COMMAND", title="commands", parser_class=_CommandParser
    )
    for row in COMMANDS:
        commands.add_parser(row.name, help=row.help, aliases=row.aliases, command=row.name)
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse with its usage errors on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"Error: {message}; see `{self.prog} --help`\n")


class _CommandParser(_Parser):
    """The parser of one command: options may stand anywhere between the other words."""

    def __init__(self, *, command: str, **rest: Any) -> None:
        super().__init__(**rest, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._command = command
        self._is_filled = False
        self._is_inside = False

    def fill(self) -> None:
        """Adds the command's own words, once."""
        if self._is_filled:
            return
        self._is_filled = True
        module = command_module(self._command)
        self.description = module.DESCRIPTION
        self.set_defaults(command=self._command)
        module.add_arguments(self)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._is_inside:  # the call below comes back here
            return super().parse_known_args(args, namespace)
        self.fill()
        self._is_inside = True
        try:
            parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False
        if unknown:
            self.error(_unexpected(unknown))
        return parsed, unknown


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for: that reads files."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            version = metadata.version("anser")
        except metadata.PackageNotFoundError:
            version = "(run from a checkout that is not installed)"
        print(f"anser {version}")
        parser.exit()
