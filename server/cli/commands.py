"""The commands inside the chat: `/set`, `/show`, `/load`, `/save`, `/clear`, `/?`, `/bye`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from server.cli.chat import Chat
from server.cli.client import Client, Json
from server.cli.errors import ServerError
from server.cli.show import show
from server.creating.modelfile import PARAMETER_TYPES, ModelfileError, parse_parameter

THINK_LEVELS = ("low", "medium", "high", "max")

_HELP = '''\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load another model and begin anew
  /save <model>   Save this session as a model
  /clear          Clear session context
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use """ to begin and to end a message of several lines.
'''
_HELP_SET = """\
Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set system message
  /set think [level]     Enable thinking; levels: low, medium, high, max
  /set nothink           Disable thinking
  /set history           Enable history
  /set nohistory         Disable history
  /set wordwrap          Enable wordwrap
  /set nowordwrap        Disable wordwrap
  /set format json       Answer in JSON
  /set noformat          Answer in free text
  /set verbose           Show timings after each reply
  /set quiet             Show no timings
"""
_HELP_SHOW = """\
Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template
"""
_HELP_SHORTCUTS = """\
Available keyboard shortcuts:
  Ctrl + c   Stop the reply
  Ctrl + d   Exit (/bye)
  Ctrl + l   Clear the screen
  Ctrl + g   Write the message in an editor ($OLLAMA_EDITOR, $VISUAL or $EDITOR)
  Ctrl + r   Search the history
  Ctrl + a, Ctrl + e   Move to the beginning, the end of the line
  Alt + b, Alt + f     Move back, forward one word
  Ctrl + k, Ctrl + u   Delete to the end, to the beginning of the line
  Ctrl + w   Delete the word before the cursor
"""
_HELP_PARAMETERS = """\
Usage:
  /set parameter <name> <value>
  /set parameter stop <string> <string> ...
"""


class HistorySwitch(Protocol):
    def keep_history(self, is_kept: bool) -> None: ...


class Commands:
    """Carries out the lines of a chat that begin with a slash, on `chat`."""

    def __init__(self, chat: Chat, client: Client, history: HistorySwitch) -> None:
        self._chat = chat
        self._client = client
        self._history = history
        self._commands: dict[str, Callable[[Sequence[str]], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
            "/help": self._help,
            "/?": self._help,
        }
        self._settings: dict[str, Callable[[Sequence[str]], None]] = {
            "parameter": self._set_parameter,
            "think": self._set_think,
            "nothink": self._set_nothink,
            "format": self._set_format,
            "noformat": self._set_noformat,
        }

    def run(self, line: str) -> bool:
        """Carry out one line; False when the chat is to end. Raises what the client raises."""
        words = line.split()
        if words[0] in ("/bye", "/exit"):
            return False
        if words[:2] == ["/set", "system"] and len(words) > 2:
            self._set_system(line)
        elif command := self._commands.get(words[0]):
            command(words[1:])
        else:
            print(f"Unknown command '{words[0]}'. Type /? for help")
        return True

    def _help(self, words: Sequence[str]) -> None:
        topics = {"set": _HELP_SET, "show": _HELP_SHOW, "shortcut": _HELP_SHORTCUTS}
        topic = words[0].lstrip("/").removesuffix("s") if words else ""
        print(topics.get(topic, _HELP))

    def _clear(self, _: Sequence[str]) -> None:
        self._chat.turns.clear()
        print("Cleared session context")

    def _load(self, words: Sequence[str]) -> None:
        if len(words) != 1:
            print("Usage:\n  /load <modelname>")
            return
        print(f"Loading model '{words[0]}'")
        try:
            self._client.load({**self._chat.request(), "model": words[0], "think": None})
        except ServerError as error:
            print(f"Couldn't load model '{words[0]}': {error}")
            return
        self._chat.model = words[0]
        self._chat.turns.clear()
        if self._chat.think and not can_think(self._client.show(words[0])):
            self._chat.think = None

    def _save(self, words: Sequence[str]) -> None:
        if len(words) != 1:
            print("Usage:\n  /save <modelname>")
            return
        try:
            info = self._client.show(self._chat.model)
            for _ in self._client.create(self._chat.saved_as(words[0], info)):
                pass
        except ServerError as error:
            print(f"Couldn't save model '{words[0]}': {error}")
            return
        print(f"Created new model '{words[0]}'")

    def _show(self, words: Sequence[str]) -> None:
        if not words:
            print(_HELP_SHOW)
            return
        text = show(words[0], self._client.show(self._chat.model), self._chat)
        print(text if text is not None else _unknown("show", words[0]))

    def _set(self, words: Sequence[str]) -> None:
        if not words:
            print(_HELP_SET)
        elif setting := self._settings.get(words[0]):
            setting(words[1:])
        elif words[0] in ("history", "nohistory"):
            self._history.keep_history(words[0] == "history")
        elif words[0] in ("wordwrap", "nowordwrap"):
            self._chat.wraps_words = words[0] == "wordwrap"
            print(f"Set '{words[0]}' mode.")
        elif words[0] in ("verbose", "quiet"):
            self._chat.is_verbose = words[0] == "verbose"
            print(f"Set '{words[0]}' mode.")
        else:
            print(_HELP_SET if words[0] == "system" else _unknown("set", words[0]))

    def _set_system(self, line: str) -> None:
        self._chat.system = line.split(maxsplit=2)[2]
        print("Set system message.")

    def _set_parameter(self, words: Sequence[str]) -> None:
        if len(words) < 2:
            print(f"{_HELP_PARAMETERS}Names:\n  {', '.join(PARAMETER_TYPES)}")
            return
        name, *values = words
        try:
            self._chat.options[name] = parse_parameter(name, values)
        except ModelfileError as error:
            print(f"Couldn't set parameter: {error}")
            return
        print(f"Set parameter '{name}' to '{', '.join(values)}'")

    def _set_think(self, words: Sequence[str]) -> None:
        level = words[0] if words else ""
        if level and level not in THINK_LEVELS:
            print(f"Unknown level '{level}'. The levels are {', '.join(THINK_LEVELS)}")
            return
        if not can_think(self._client.show(self._chat.model)):
            print(f'warning: model "{self._chat.model}" does not support thinking')
            return
        self._chat.think = level or True
        print(f"Set 'think' mode to '{level}'." if level else "Set 'think' mode.")

    def _set_format(self, words: Sequence[str]) -> None:
        if list(words) != ["json"]:
            print("Invalid or missing format. For 'json' mode use '/set format json'")
            return
        self._chat.format = "json"
        print("Set format to 'json' mode.")

    def _set_noformat(self, _: Sequence[str]) -> None:
        self._chat.format = None
        print("Disabled format.")

    def _set_nothink(self, _: Sequence[str]) -> None:
        self._chat.think = False
        print("Set 'nothink' mode.")


def can_think(info: Json) -> bool:
    return "thinking" in (info.get("capabilities") or [])


def _unknown(command: str, word: str) -> str:
    return f"Unknown command '/{command} {word}'. Type /? for help"
