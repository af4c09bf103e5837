"""Prompt formats: the words around the turns of a chat, read from `configs/prompts/*.toml`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from rwkv_core.chat.messages import Think
from rwkv_core.errors import OptionError
from rwkv_core.settings import config_dir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

FALLBACK_NAME = "world"


class ToolStyle(Enum):
    """How the offered tools are written into the prompt."""

    LINES = "lines"
    JSON = "json"


@dataclass(frozen=True)
class ThinkingFormat:
    """The tags of a thought. `on` and `off` lack their last `>`, which the model writes."""

    on: str
    off: str
    close: str
    levels: Mapping[Think, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolFormat:
    """The words around offered tools, calls and results."""

    header: str
    style: ToolStyle
    instruction: str
    call_open: str
    call_close: str
    result_header: str


@dataclass(frozen=True)
class PromptFormat:
    """Everything `render_chat` and `ReplyParser` need to know about a family of models."""

    name: str
    description: str
    match: tuple[re.Pattern[str], ...]
    stops: tuple[str, ...]
    system: str
    user: str
    assistant: str
    separator: str
    thinking: ThinkingFormat | None = None
    tools: ToolFormat | None = None

    @property
    def can_think(self) -> bool:
        return self.thinking is not None

    @property
    def can_use_tools(self) -> bool:
        return self.tools is not None

    def matches(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self.match)

    def without_thinking(self) -> PromptFormat:
        """The same format with prompts that end in plain "Assistant:"."""
        return replace(self, thinking=None)


def load_prompt_formats(folder: Path | None = None) -> list[PromptFormat]:
    """All formats of `folder` (default: the configuration's), by file name, the fallback last.

    Raises OptionError naming the file for text that is not TOML, unknown or missing keys.
    """
    folder = folder or config_dir() / "prompts"
    formats = [_read_format(path) for path in sorted(folder.glob("*.toml"))]
    if not any(each.name == FALLBACK_NAME for each in formats):
        raise OptionError(
            f"{folder}: no prompt format is named {FALLBACK_NAME}; restore {FALLBACK_NAME}.toml"
        )
    return sorted(formats, key=lambda each: each.name == FALLBACK_NAME)


def choose_prompt_format(*names: str, folder: Path | None = None) -> PromptFormat:
    """The first format with a pattern that matches one of `names`; "world" when none does."""
    formats = load_prompt_formats(folder)
    for each in formats:
        if any(each.matches(name) for name in names):
            return each
    return formats[-1]


def _read_format(path: Path) -> PromptFormat:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not a valid TOML file ({error}); correct it") from error
    table = _Table(path, "", data)
    turns = table.table("turns")
    thinking = table.optional_table("thinking")
    tools = table.optional_table("tools")
    result = PromptFormat(
        name=table.text("name"),
        description=table.text("description"),
        match=tuple(table.pattern(text) for text in table.texts("match")),
        stops=table.texts("stops"),
        system=turns.text("system"),
        user=turns.text("user"),
        assistant=turns.text("assistant"),
        separator=turns.text("separator"),
        thinking=_read_thinking(thinking) if thinking else None,
        tools=_read_tools(tools) if tools else None,
    )
    turns.refuse_rest()
    table.refuse_rest()
    return result


def _read_thinking(table: _Table) -> ThinkingFormat:
    levels = table.optional_table("levels")
    texts: dict[Think, str] = {}
    if levels:
        for level in (Think.LOW, Think.MEDIUM, Think.HIGH, Think.MAX):
            texts[level] = levels.text(level.value)
        levels.refuse_rest()
    result = ThinkingFormat(table.text("on"), table.text("off"), table.text("close"), texts)
    table.refuse_rest()
    return result


def _read_tools(table: _Table) -> ToolFormat:
    style = table.text("style")
    if style not in {each.value for each in ToolStyle}:
        raise table.error("style", 'must be "lines" or "json"')
    result = ToolFormat(
        header=table.text("header"),
        style=ToolStyle(style),
        instruction=table.text("instruction"),
        call_open=table.text("call_open"),
        call_close=table.text("call_close"),
        result_header=table.text("result_header"),
    )
    table.refuse_rest()
    return result


class _Table:
    """A TOML table whose keys are taken one by one; what is left over is a user's mistake."""

    def __init__(self, path: Path, prefix: str, data: Mapping[str, Any]) -> None:
        self._path = path
        self._prefix = prefix
        self._rest = dict(data)

    def error(self, key: str, problem: str) -> OptionError:
        return OptionError(f"{self._path}: `{self._prefix}{key}` {problem}")

    def _take(self, key: str) -> Any:
        if key not in self._rest:
            raise self.error(key, "is missing; add it")
        return self._rest.pop(key)

    def text(self, key: str) -> str:
        value = self._take(key)
        if not isinstance(value, str):
            raise self.error(key, "must be text in quotes")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.error(key, "must be a list of texts in quotes")
        return tuple(value)

    def pattern(self, text: str) -> re.Pattern[str]:
        try:
            return re.compile(text, re.IGNORECASE)
        except re.error as error:
            raise self.error("match", f"holds no regular expression: {text} ({error})") from error

    def table(self, key: str) -> _Table:
        value = self._take(key)
        if not isinstance(value, dict):
            raise self.error(key, "must be a table")
        return _Table(self._path, f"{self._prefix}{key}.", value)

    def optional_table(self, key: str) -> _Table | None:
        return self.table(key) if key in self._rest else None

    def refuse_rest(self) -> None:
        for key in self._rest:
            raise self.error(key, "is not a known key; remove it or correct its spelling")
