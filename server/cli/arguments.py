"""The command line's grammar and its help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import NoReturn, TypeAlias

from server.cli import pull, push
from server.cli.model_arguments import add_json, add_model_commands
from server.durations import DurationError, keep_alive_ns

EXIT_USAGE = 2

THINK_VALUES: dict[str, bool | str] = {
    "true": True,
    "false": False,
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
}

_EPILOG = """\
Models are kept in $OLLAMA_MODELS (~/.anser/models).
The server's address is $OLLAMA_HOST (127.0.0.1:11434).
`anser run rwkv7-demo` talks to the small model that comes along.
"""
_SERVE = """\
Serve Ollama's API until Ctrl-C. Everything is set by environment variables:

  OLLAMA_HOST        address and port (127.0.0.1:11434; port 0 takes a free one)
  OLLAMA_MODELS      folder of the models (~/.anser/models)
  OLLAMA_KEEP_ALIVE  how long an unused model stays in memory (5m)
  OLLAMA_MAX_LOADED_MODELS  how many models may be in memory at once (3)
  OLLAMA_ORIGINS     origins whose web pages may call, beside this machine's
  OLLAMA_DEBUG       1 for a log that says more
  ANSER_DEVICE       auto, cpu, cuda or cuda:N
"""
_RUN = """\
Chat with a model. With a PROMPT, or with text on standard input, answer that and leave.
A model that is not there is pulled first.

Talks to the server at $OLLAMA_HOST; where none answers on this machine, one is started
on a free port and ended with the chat. Its log is ~/.anser/logs/server.log.
"""
_CREATE = """\
Make a model in this machine's models folder ($OLLAMA_MODELS, default ~/.anser/models). Where
$OLLAMA_HOST names another machine, its files are sent there, and the server there makes it.

FROM in the Modelfile names a file or folder (.pth, safetensors, GGUF, rwkv.cpp .bin), relative
to the Modelfile, or a model that is there already. Any of PARAMETER, SYSTEM, TEMPLATE, MESSAGE
and LICENSE may follow, and ADAPTER with a tuned initial state (a time_state file, .pth or
safetensors). A server need not run; one that runs answers the next request with the new model,
and forgets one of that name that was in its memory as it would forget any that is not used.

TYPE, from the largest to the smallest: q8_0, q6_k, q5_1, q5_k_m, q5_0, q4_k_m, q4_0.
"""
_LIST = """\
List the models of the server at $OLLAMA_HOST, the newest first. Where none answers on this
machine, those in $OLLAMA_MODELS (~/.anser/models) are listed.
"""
_BENCH = """\
Measure models on this machine's processor: files, or names as `anser list` shows them. Prefill and
decode are of random tokens from an empty state, as llama-bench does it; the table is Markdown.

With --quality: perplexity on a text, divergence from the float32 model, and greedy texts.

With --chat: chats over HTTP, with and without thinking, on a server of their own: what each turn
reads and reuses, how soon it answers, and the server's memory.

With --load N: N such chats at once, compared with each of them alone.
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The words of a command line; `command` is the module of `server.cli` that carries it out.

    Leaves with exit code 2 and one line for wrong usage, with 0 after --help and --version.
    """
    parser = _Parser(
        prog="anser",
        description="A local server that speaks Ollama's API and runs RWKV-7 language models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", "-v", action=_ShowVersion, help="show the version and leave")
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, title="commands", parser_class=_CommandParser
    )
    for add in (_add_serve, _add_run, _add_pull, _add_push, _add_create, _add_list, _add_bench):
        add(commands)
    add_model_commands(partial(_add, commands))
    return parser.parse_args(_spell_out_think(argv))


class _Parser(argparse.ArgumentParser):
    """argparse with its usage errors on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"Error: {message}; see `{self.prog} --help`\n")


class _CommandParser(_Parser):
    """The parser of one command: options may stand anywhere between the other words."""

    _is_inside = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._is_inside:  # the call below comes back here
            return super().parse_known_args(args, namespace)
        self._is_inside = True
        try:
            parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False
        if unknown:
            self.error(f"unknown: {' '.join(unknown)}")
        return parsed, unknown


_Commands: TypeAlias = "argparse._SubParsersAction[_CommandParser]"  # generic to type checkers only


def _add(commands: _Commands, name: str, help: str, description: str) -> _CommandParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        aliases=["ls"] if name == "list" else [],
    )
    parser.set_defaults(command=name)
    return parser


def _add_serve(commands: _Commands) -> None:
    parser = _add(commands, "serve", "start the server", _SERVE)
    # For `anser run`: print the address alone, end when standard input does.
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)


def _add_run(commands: _Commands) -> None:
    parser = _add(commands, "run", "chat with a model, or ask it one question", _RUN)
    parser.add_argument("model", metavar="MODEL", help="as `anser list` shows it")
    parser.add_argument("prompt", metavar="PROMPT", nargs="*", default=[], help="what to ask")
    parser.add_argument(
        "--think",
        metavar="LEVEL",
        type=_think,
        help="think first: --think, --think=low|medium|high|max, or --think=false",
    )
    parser.add_argument("--hidethinking", action="store_true", help="do not show the thoughts")
    parser.add_argument("--verbose", action="store_true", help="show timings after each reply")
    parser.add_argument(
        "--keepalive",
        metavar="DURATION",
        type=_keep_alive,
        help="how long the model stays in memory afterwards: 5m, 1h30m, seconds, -1 for ever",
    )
    parser.add_argument("--nowordwrap", action="store_true", help="do not wrap lines at words")


def _add_pull(commands: _Commands) -> None:
    pull.add_arguments(_add(commands, "pull", "fetch a model from a registry", pull.DESCRIPTION))


def _add_push(commands: _Commands) -> None:
    push.add_arguments(_add(commands, "push", "send a model to a registry", push.DESCRIPTION))


def _add_create(commands: _Commands) -> None:
    parser = _add(commands, "create", "make a model from a file or a Modelfile", _CREATE)
    parser.add_argument("name", metavar="NAME", help="of the new model, with or without a :tag")
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "-f",
        "--file",
        metavar="MODELFILE",
        default="Modelfile",
        help="default: ./Modelfile; - is stdin",
    )
    sources.add_argument(
        "--from", dest="source", metavar="FILE|NAME", help="as a Modelfile with only this FROM"
    )
    parser.add_argument(
        "--adapter", metavar="FILE", help="a tuned initial state, as an ADAPTER line names it"
    )
    parser.add_argument(
        "-q", "--quantize", metavar="TYPE", help="store the weights with fewer bits, as TYPE"
    )


def _add_list(commands: _Commands) -> None:
    parser = _add(commands, "list", "list the models", _LIST)
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="of the names")
    add_json(parser)


def _add_bench(commands: _Commands) -> None:
    parser = _add(commands, "bench", "measure speed, memory and quality of models", _BENCH)
    parser.add_argument("models", metavar="FILE|NAME", nargs="+", help="what to measure")
    for short, dest, help in (
        ("-p", "prompt_tokens", "tokens of the prompt (512)"),
        ("-n", "decode_tokens", "tokens to decode (64), or the most that a reply may have"),
        ("-r", "repetitions", "repetitions of each measurement (3)"),
        ("-t", "threads", "threads (default: the physical cores)"),
        ("-b", "batch", "decode so many sequences at once, too"),
        ("--long", "long", "decode after 100 and after so many tokens of text, too"),
    ):
        parser.add_argument(short, dest=dest, metavar="N", type=_count, help=help)
    parser.add_argument(
        "--isa", choices=("avx512", "avx2", "portable"), help="use no better instruction set"
    )
    parser.add_argument(
        "--peer", metavar="FILE", help="a llama-bench to run by turns on the same model"
    )
    parser.add_argument("--quality", action="store_true", help="measure quality, not speed")
    parser.add_argument("--text", metavar="FILE", help="with --quality: what to read")
    parser.add_argument(
        "--reference",
        metavar="FILE|NAME",
        help="with --quality: compare with this model in float32 (default: the model itself)",
    )
    parser.add_argument("--chat", action="store_true", help="measure the turns of chats")
    parser.add_argument("--load", metavar="N", type=_count, help="measure N chats at once")
    parser.add_argument(
        "--turns",
        metavar="N,...",
        type=_turns,
        help="with --chat: a chat of so many turns each (10,100); with --load: of each chat (10)",
    )
    parser.add_argument(
        "--think",
        metavar="true|false",
        type=_yes_or_no,
        help="with --chat: only with or without thinking (both); with --load: with it",
    )
    parser.add_argument(
        "--pause",
        metavar="S",
        type=_seconds,
        help="with --chat: seconds between turns (1 with thinking, else 0)",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="with --chat: draw the turns")
    parser.add_argument("--json", action="store_true", help="all numbers, one object a line")


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, not "{value}"')
    return int(value)


def _turns(value: str) -> tuple[int, ...]:
    counts = tuple(_count(each) for each in value.split(","))
    if min(counts) < 2:
        raise argparse.ArgumentTypeError("a chat has at least 2 turns")
    return counts


def _yes_or_no(value: str) -> bool:
    if value not in ("true", "false"):
        raise argparse.ArgumentTypeError(f'must be true or false, not "{value}"')
    return value == "true"


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", value):
        raise argparse.ArgumentTypeError(f'must be seconds, as 1 or 0.5, not "{value}"')
    return float(value)


def _spell_out_think(argv: Sequence[str]) -> list[str]:
    """`argv` with a bare `--think` spelled out, so that it takes no word of the prompt."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = ["--think=true" if word == "--think" else word for word in argv[:end]]
    return [*options, *argv[end:]]


def _think(value: str) -> bool | str:
    if value not in THINK_VALUES:
        known = ", ".join(THINK_VALUES)
        raise argparse.ArgumentTypeError(f'must be one of {known}, not "{value}"')
    return THINK_VALUES[value]


def _keep_alive(value: str) -> int | str:
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
