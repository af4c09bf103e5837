"""Where settings come from: a flag goes before the environment, that before the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

from server.settings.model import Settings, SettingsError
from server.settings.settings_file import read_file
from server.settings.table import FILE_VARIABLE, IGNORED, SETTINGS, Setting, known_variables
from server.settings.values import Address


class Origin(Enum):
    """Who said so, as the help names it."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True)
class Given:
    """A setting's text, and who gave it."""

    text: str
    origin: Origin


@dataclass(frozen=True)
class Reading:
    """All settings, each one's text and origin by its key, and the file if one was read."""

    settings: Settings
    given: Mapping[str, Given]
    file: Path | None


def read_settings(
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str = "",
) -> Reading:
    """The settings of `flags` (texts by key), `environment` (default: the process's) and `file`
    (default: the one that ANSER_CONFIG names, or ~/.anser/server.toml if it is there).

    Raises SettingsError, in one line, for what cannot be used.
    """
    variables = os.environ if environment is None else environment
    path = _file_path(file, variables)
    in_file = read_file(path) if path else {}
    fields: dict[str, Any] = {}
    engine: dict[str, str] = {}
    given: dict[str, Given] = {}
    for setting in SETTINGS:
        found = _find(setting, flags or {}, variables, in_file)
        given[setting.key] = found
        if not found.text:
            continue
        value = _read(setting, found, path)
        if isinstance(value, Address):
            fields |= value._asdict()
        elif setting.field:
            fields[setting.field] = value
        elif found.origin is not Origin.DEFAULT:
            engine[setting.variable] = str(value)
    return Reading(Settings(**fields, engine_variables=engine), given, path)


def remarks(environment: Mapping[str, str] | None = None) -> list[str]:
    """What to say about Ollama's and Anser's variables that change nothing, a line for each."""
    variables = os.environ if environment is None else environment
    lines = [f"{name} changes nothing: {IGNORED[name]}" for name in IGNORED if variables.get(name)]
    known = known_variables()
    for name in sorted(variables):
        if name.startswith(("OLLAMA_", "ANSER_")) and name not in known:
            lines.append(f"{name} is no setting{did_you_mean(name, known)}")
    return lines


def did_you_mean(word: str, known: frozenset[str] | set[str]) -> str:
    """Words to put behind an error about `word`; "" when none of `known` is like it."""
    nearest = get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _file_path(file: str, variables: Mapping[str, str]) -> Path | None:
    """Raises nothing: a file that is named and not there is an error when it is read."""
    named = file or variables.get(FILE_VARIABLE, "").strip()
    if named:
        return Path(named).expanduser()
    home = Path.home() if variables is os.environ else Path(variables.get("HOME", os.devnull))
    usual = home / ".anser" / "server.toml"
    return usual if usual.is_file() else None


def _find(
    setting: Setting,
    flags: Mapping[str, str],
    variables: Mapping[str, str],
    in_file: Mapping[str, str],
) -> Given:
    """An empty text says nothing, wherever it stands."""
    if flags.get(setting.key):
        return Given(flags[setting.key], Origin.FLAG)
    # Quotes and blanks that people put around values are taken off, as Ollama does.
    if text := variables.get(setting.variable, "").strip().strip("\"'").strip():
        return Given(text, Origin.ENVIRONMENT)
    if in_file.get(setting.key):
        return Given(in_file[setting.key], Origin.FILE)
    return Given(setting.default, Origin.DEFAULT)


def _read(setting: Setting, given: Given, path: Path | None) -> Any:
    try:
        return setting.read(given.text)
    except ValueError as error:
        name = {
            Origin.FLAG: setting.flag,
            Origin.FILE: f"{path}: {setting.key}",
        }.get(given.origin, setting.variable)
        shown = "" if setting.is_secret else f'="{given.text}"'
        raise SettingsError(f"{name}{shown}: {error}") from None
