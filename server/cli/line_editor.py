"""The prompt of the chat: editing, history, blocks of several lines."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

BLOCK_QUOTES = '"""'
_BLOCK_COMMAND = "/set system "
_GREY = "ansibrightblack"


class LineEditor:
    """Reads what the user types; a line that opens a block is followed by more until it closes."""

    def __init__(self, history_path: Path, editor: str = "") -> None:
        """`editor` is the command that Ctrl-G starts; "" leaves it to $VISUAL and $EDITOR."""
        if editor:
            os.environ["VISUAL"] = editor  # where prompt_toolkit looks
        self._history = _History(history_path)
        self._session: PromptSession[str] = PromptSession(
            ">>> ",
            history=self._history,
            multiline=Condition(lambda: is_open_block(get_app().current_buffer.text)),
            prompt_continuation="... ",
            key_bindings=_keys(),
            placeholder=FormattedText([(_GREY, "Send a message (/? for help)")]),
        )

    def read(self) -> str:
        """One entry. Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        return self._session.prompt()

    def keep_history(self, is_kept: bool) -> None:
        self._history.is_kept = is_kept


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-g")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys


class _History(FileHistory):
    """A history that can be switched off, readable by its owner only, and never an error."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.is_kept = True
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def append_string(self, string: str) -> None:
        if self.is_kept:
            super().append_string(string)

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def is_open_block(text: str) -> bool:
    """Whether `text`, or the value of its `/set system`, opens a block and does not close it."""
    body = _block_body(text)
    return body.startswith(BLOCK_QUOTES) and not _is_closed(body)


def strip_block(text: str) -> str:
    """`text` without the quotes of a block around it."""
    body = _block_body(text)
    if not body.startswith(BLOCK_QUOTES) or not _is_closed(body):
        return text
    quoted = body.rstrip()
    return text[: len(text) - len(body)] + quoted[len(BLOCK_QUOTES) : -len(BLOCK_QUOTES)]


def _block_body(text: str) -> str:
    start = text.lstrip()
    return start[len(_BLOCK_COMMAND) :].lstrip() if start.startswith(_BLOCK_COMMAND) else start


def _is_closed(body: str) -> bool:
    end = body.rstrip()
    return len(end) >= 2 * len(BLOCK_QUOTES) and end.endswith(BLOCK_QUOTES)
