"""The file of settings, TOML: reading one, and writing the one that documents them all.

`python -m server.settings.settings_file > configs/server.toml` after a change of the table.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from server.settings.model import SettingsError
from server.settings.table import FILE_VARIABLE, IGNORED, SETTINGS, Kind, Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_WIDTH = 100
_HEAD = f"""\
# Settings of `anser serve`. Each stands here with its default, commented out.
#
# This file is not read where it lies: copy it to ~/.anser/server.toml, or name a copy with
# `anser serve --config FILE` or ${FILE_VARIABLE}. A flag goes before a variable of the environment,
# that before the file. `anser serve --help` shows what is set, and where.
"""


def read_file(path: Path) -> Mapping[str, str]:
    """The text of each setting in the file, by key. Raises SettingsError naming file and key."""
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise SettingsError(
            f"{path}: {error.strerror}; correct --config or {FILE_VARIABLE}"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: no TOML: {error}") from error
    known = {setting.key: setting for setting in SETTINGS}
    for key in content.keys() - known.keys():
        nearest = get_close_matches(key, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "configs/server.toml lists them all"
        raise SettingsError(f'{path}: unknown setting "{key}"; {hint}')
    return {key: _text(path, known[key], value) for key, value in content.items()}


def _text(path: Path, setting: Setting, value: Any) -> str:
    """A value as it would stand in the environment."""
    if value == "":
        return ""
    if isinstance(value, bool):
        fits, text = setting.kind is Kind.SWITCH, str(int(value))
    elif isinstance(value, int):
        # A number of seconds is a duration, too.
        fits, text = setting.kind is not Kind.LIST, str(value)
    elif isinstance(value, list):
        fits = setting.kind is Kind.LIST and all(isinstance(each, str) for each in value)
        text = ",".join(map(str, value))
    else:
        fits, text = isinstance(value, str) and setting.kind in (Kind.TEXT, Kind.LIST), str(value)
    if not fits:
        wanted = {
            Kind.TEXT: 'a "text"',
            Kind.NUMBER: "a number",
            Kind.SWITCH: "true or false",
            Kind.LIST: 'a ["list", "of texts"]',
        }[setting.kind]
        raise SettingsError(f"{path}: {setting.key} must be {wanted}")
    return text


def documentation() -> str:
    """The text of `configs/server.toml`."""
    parts = [_HEAD]
    for setting in SETTINGS:
        about = f"{setting.help[0].upper()}{setting.help[1:]}."
        names = ", ".join(filter(None, (f"${setting.variable}", setting.flag)))
        lines = [*textwrap.wrap(about, _WIDTH - 2), names]
        comment = "".join(f"# {line}\n" for line in lines)
        parts.append(f"{comment}#{setting.key} = {_default_in_toml(setting)}\n")
    ignored = "".join(f"# {name}: {reason}\n" for name, reason in IGNORED.items())
    parts.append(f"# These variables of Ollama's are accepted and change nothing.\n{ignored}")
    return "\n".join(parts)


def _default_in_toml(setting: Setting) -> str:
    if setting.kind is Kind.LIST:
        return "[]"
    if setting.kind is Kind.SWITCH:
        return "true" if setting.default == "1" else "false"
    if setting.kind is Kind.NUMBER and setting.default:
        return setting.default
    return f'"{setting.default}"'


if __name__ == "__main__":
    sys.stdout.write(documentation())
