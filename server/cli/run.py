"""`anser run MODEL [PROMPT]`: one question, or a chat in the terminal."""

from __future__ import annotations

import argparse
import sys

from server.cli import argument_types
from server.cli.chat import Chat
from server.cli.client import Client, Json
from server.cli.commands import Commands, can_think
from server.cli.connection import connected
from server.cli.errors import CommandError, ServerError
from server.cli.private_server import anser_folder
from server.cli.terminal import ReplyWriter, Spinner
from server.cli.transfer import transfer
from server.settings import Settings

_INTERRUPTED = 130


DESCRIPTION = """\
Chat with a model. With a PROMPT, or with text on standard input, answer that and leave.
A model that is not there is pulled first.

Talks to the server at $OLLAMA_HOST; where none answers on this machine, one is started
on a free port and ended with the chat. Its log is ~/.anser/logs/server.log.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", type=argument_types.model_name, help="as `anser list` shows it"
    )
    parser.add_argument("prompt", metavar="PROMPT", nargs="*", default=[], help="what to ask")
    parser.add_argument(
        "--think",
        metavar="LEVEL",
        type=argument_types.think,
        help="think first: --think, --think=low|medium|high|max, or --think=false",
    )
    parser.add_argument("--hidethinking", action="store_true", help="do not show the thoughts")
    parser.add_argument("--verbose", action="store_true", help="show timings after each reply")
    parser.add_argument(
        "--keepalive",
        metavar="DURATION",
        type=argument_types.keep_alive,
        help="how long the model stays in memory afterwards: 5m, 1h30m, seconds, -1 for ever",
    )
    parser.add_argument(
        "--format",
        metavar="json|SCHEMA",
        type=argument_types.reply_format,
        help="answer in JSON, or in JSON of this schema",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="speak plain HTTP to the registry, without TLS"
    )
    parser.add_argument("--nowordwrap", action="store_true", help="do not wrap lines at words")


def execute(arguments: argparse.Namespace) -> int:
    prompt = _read_prompt(arguments.prompt)
    is_chat = not arguments.prompt and sys.stdin.isatty() and sys.stdout.isatty()
    settings = Settings.from_environment()
    with connected(settings) as client:
        info = _find_model(client, arguments.model, insecure=arguments.insecure)
        chat = _begin(arguments, info)
        if is_chat:
            _show_messages(chat, info)
            _converse(client, chat, settings)
        elif prompt.strip():
            return 0 if chat.ask(client, prompt, sys.stdout, sys.stderr) else _INTERRUPTED
        else:
            client.load(chat.request())
    return 0


def _read_prompt(words: list[str]) -> str:
    """The piped text, then the words of the command line."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    return " ".join([piped, *words] if piped else words)


def _begin(arguments: argparse.Namespace, info: Json) -> Chat:
    """The chat that the flags ask for. Raises CommandError for a model that cannot take part."""
    if arguments.think and not can_think(info):
        raise CommandError(f'"{arguments.model}" does not support thinking; leave --think out')
    return Chat(
        arguments.model,
        think=arguments.think,
        keep_alive=arguments.keepalive,
        format=arguments.format,
        hides_thinking=arguments.hidethinking,
        is_verbose=arguments.verbose,
        wraps_words=not arguments.nowordwrap,
    )


def _find_model(client: Client, model: str, *, insecure: bool) -> Json:
    """What the server knows of the model, which is pulled if it is not there."""
    try:
        return client.show(model)
    except ServerError as error:
        if error.status != 404:
            raise
    try:
        transfer(client, "pull", model, insecure=insecure)
    except ServerError as error:
        raise CommandError(
            f"model '{model}' not found, and cannot be pulled: {error}; `anser list` shows the "
            f"models that are here, `anser create {model} -f Modelfile` makes one from a file"
        ) from error
    return client.show(model)


def _show_messages(chat: Chat, info: Json) -> None:
    """The turns that the model's Modelfile puts before every chat."""
    for message in info.get("messages") or []:
        if message["role"] == "user":
            print(f">>> {message['content']}")
        elif message["role"] == "assistant":
            writer = ReplyWriter(sys.stdout, wrap=chat.wraps_words)
            writer.content(message["content"])
            writer.finish()
            print()


def _converse(client: Client, chat: Chat, settings: Settings) -> None:
    """Read and answer until the user leaves. An error of the server ends a reply, not the chat."""
    # Imported here: one question needs no editor, and not its tenth of a second.
    from server.cli.line_editor import LineEditor, strip_block  # noqa: PLC0415

    with Spinner(sys.stderr):
        client.load(chat.request())
    editor = LineEditor(anser_folder() / "history", settings.editor)
    editor.keep_history(settings.keeps_history)
    commands = Commands(chat, client, editor)
    while True:
        try:
            line = editor.read()
        except KeyboardInterrupt:
            print("Use Ctrl + d or /bye to exit.")
            continue
        except EOFError:
            return
        try:
            text = strip_block(line)
            if line.strip().startswith("/"):
                if not commands.run(text.strip()):
                    return
            elif text.strip():
                chat.ask(client, text, sys.stdout, sys.stderr)
                print()
        except KeyboardInterrupt:  # of a command; one of a reply ends there
            print()
        except CommandError as error:
            print(f"error: {error}")
