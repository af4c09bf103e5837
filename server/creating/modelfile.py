"""Modelfiles: the parser, the printer, and the types of parameters.

The grammar is Ollama's. A command is a word in any case, then its value up to the end of the line.
A value that opens with one or three double quotes runs, over as many lines as it takes, to a line
that ends in the same quotes; there are no escapes, so quotes inside it are text. A line whose first
character is `#` is a comment.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rwkv_core.errors import AnserError

ParameterValue = bool | int | float | str | list[str]

COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter",
    "message", "requires",
)  # fmt: skip
ROLES = ("system", "user", "assistant")

# Ollama's options with their types; `penalty_decay` is RWKV's own.
PARAMETER_TYPES: Mapping[str, type] = {
    "num_keep": int,
    "seed": int,
    "num_predict": int,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "repeat_last_n": int,
    "temperature": float,
    "repeat_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "penalty_decay": float,
    "stop": list,
    "num_ctx": int,
    "num_batch": int,
    "num_gpu": int,
    "main_gpu": int,
    "use_mmap": bool,
    "num_thread": int,
    "draft_num_predict": int,
}

# Of earlier versions of Ollama: lines that say them are read, and change nothing.
DEPRECATED_PARAMETERS = frozenset({
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat",
    "mirostat_tau", "mirostat_eta",
})  # fmt: skip

# Words that Go's strconv.ParseBool takes, as Ollama does.
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_VERSION = re.compile(r"v?\d+(\.\d+){0,2}([-+][0-9A-Za-z.+-]+)?")
_BLANKS = " \t"


# In Ollama's words, which its users look for.
_UNKNOWN_COMMAND = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", '
    '"renderer", "parser", "parameter", "message", or "requires"'
)
_WRONG_ROLE = 'message role must be one of "system", "user", or "assistant"'


class ModelfileError(AnserError):
    """A Modelfile that cannot be read; `line` is 1-based, 0 when the fault has no line."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(f"(line {line}): {problem}" if line else problem)
        self.line = line


@dataclass(frozen=True)
class Command:
    """One command. `key` is the name of a PARAMETER or the role of a MESSAGE, else empty."""

    name: str
    value: str
    key: str = ""
    line: int = field(default=0, compare=False)

    def __str__(self) -> str:
        key = f" {self.key}" if self.key else ""
        return f"{self.name.upper()}{key} {_quote(self.value)}"


@dataclass(frozen=True)
class Modelfile:
    """The commands of a Modelfile in their order; `str()` of it is a Modelfile again."""

    commands: tuple[Command, ...]

    def __str__(self) -> str:
        return "".join(f"{command}\n" for command in self.commands)

    def all(self, name: str) -> Iterator[Command]:
        return (command for command in self.commands if command.name == name)

    def last(self, name: str) -> str | None:
        """The value of the last `name` command, as a later line overrides an earlier one."""
        values = [command.value for command in self.all(name)]
        return values[-1] if values else None

    @property
    def source(self) -> str:
        """The value of FROM."""
        value = self.last("from")
        if not value:
            raise ModelfileError("there is no FROM line; begin with FROM and a model file or name")
        return value

    @property
    def deprecated(self) -> list[str]:
        """Names of parameters that are read and change nothing."""
        keys = dict.fromkeys(each.key for each in self.all("parameter"))
        return [key for key in keys if key in DEPRECATED_PARAMETERS]

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": each.key, "content": each.value} for each in self.all("message")]

    @property
    def parameters(self) -> dict[str, ParameterValue]:
        """Typed parameters; `stop` lines add up, any other repeated name takes its last value."""
        result: dict[str, ParameterValue] = {}
        for each in self.all("parameter"):
            if each.key in DEPRECATED_PARAMETERS:
                continue
            value = _typed(each)
            earlier = result.get(each.key)
            if isinstance(value, list) and isinstance(earlier, list):
                value = earlier + value
            result[each.key] = value
        return result


def parse_modelfile(text: str) -> Modelfile:
    """Read a whole Modelfile.

    Raises ModelfileError, with the line, for an unknown command, parameter or role, a parameter of
    the wrong type, a quote that never closes, and for a missing or a second FROM.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    commands = tuple(_read_commands(lines))
    result = Modelfile(commands)
    sources = list(result.all("from"))
    if len(sources) > 1:
        raise ModelfileError("a second FROM; a model comes from one file or model", sources[1].line)
    _ = result.source, result.parameters
    return result


def decode_modelfile(data: bytes) -> str:
    """The text of a Modelfile's bytes: UTF-8, or UTF-16 where a byte order mark says so."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelfileError("this is not a text file in UTF-8; is it a Modelfile?") from error


def parse_parameter(name: str, values: Sequence[str]) -> ParameterValue:
    """The typed value of a parameter from its words; only `stop` takes more than one word.

    Raises ModelfileError for an unknown name and for words that are not of its type.
    """
    kind = PARAMETER_TYPES.get(name)
    if kind is None:
        known = ", ".join(sorted(PARAMETER_TYPES))
        raise ModelfileError(f"unknown parameter '{name}'; the known ones are {known}")
    if kind is list:
        return list(values)
    word = " ".join(values).strip()
    read = _SCALARS[kind]
    try:
        return read(word)
    except ValueError as error:
        problem = f"parameter {name} must be {_KIND_NAMES[kind]}, not '{word}'"
        raise ModelfileError(problem) from error


def _read_commands(lines: Sequence[str]) -> Iterator[Command]:
    number = 0
    while number < len(lines):
        start = number + 1
        text = lines[number].lstrip(_BLANKS)
        number += 1
        if not text or text.startswith("#"):
            continue
        name, rest = _first_word(text)
        key = ""
        if name.lower() in ("parameter", "message"):
            key, rest = _first_word(rest)
            if key and not rest.strip(_BLANKS):
                raise ModelfileError(f"{name.upper()} {key} has no value", start)
        value, number = _read_value(rest, lines, number, start)
        yield _checked(Command(name.lower(), value, key, start))


def _read_value(first: str, lines: Sequence[str], number: int, start: int) -> tuple[str, int]:
    """The value that begins with `first` on line `start`, and the index of the line after it."""
    buffer = first
    while (value := _unquote(buffer.strip(_BLANKS))) is None:
        if number >= len(lines):
            quotes = '"""' if first.startswith('"""') else '"'
            raise ModelfileError(f"the {quotes} that opens here is never closed", start)
        buffer += "\n" + lines[number]
        number += 1
    return value, number


def _checked(command: Command) -> Command:
    """`command`, or the error that a reader of its line understands."""
    if command.name not in COMMANDS:
        raise ModelfileError(_UNKNOWN_COMMAND, command.line)
    if command.name == "parameter":
        if not command.key:
            raise ModelfileError("PARAMETER needs a name and a value", command.line)
        if command.key not in DEPRECATED_PARAMETERS:
            _typed(command)
    elif command.name == "message" and command.key not in ROLES:
        raise ModelfileError(_WRONG_ROLE, command.line)
    elif command.name == "requires" and not _VERSION.fullmatch(command.value):
        problem = f"requires must be a valid semver (e.g. 0.14.0), not '{command.value}'"
        raise ModelfileError(problem, command.line)
    elif command.name in ("from", "adapter") and not command.value:
        raise ModelfileError(f"{command.name.upper()} needs a file", command.line)
    return command


def _typed(command: Command) -> ParameterValue:
    try:
        return parse_parameter(command.key, [command.value])
    except ModelfileError as error:
        raise ModelfileError(str(error), command.line) from error


def _first_word(text: str) -> tuple[str, str]:
    word = re.split(r"[ \t]", text, maxsplit=1)[0]
    return word, text[len(word) :].lstrip(_BLANKS)


def _unquote(text: str) -> str | None:
    """`text` without its quotes, None when an opened quote is still open."""
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            is_closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if is_closed else None
    return text


def _quote(value: str) -> str:
    """`value` as the parser reads it back; ModelfileError for values that have no spelling."""
    is_plain = value and value == value.strip() and not value.startswith('"')
    if is_plain and "\n" not in value and "\r" not in value:
        return value
    quotes = '"""' if '"' in value else '"'
    # The parser looks for the closing quotes at the end of every line, so none may stand there.
    heads = (quotes + value[: found.start()] for found in re.finditer("\n", value))
    closes_early = any(_unquote(head.strip(_BLANKS)) is not None for head in heads)
    if closes_early or "\r" in value:
        problem = (
            'a value with a carriage return, or with """ at the end of a line, has no spelling'
        )
        raise ModelfileError(problem)
    return quotes + value + quotes


def _integer(word: str) -> int:
    value = int(_plain(word))
    if not -(2**63) <= value < 2**63:
        raise ValueError(word)
    return value


def _number(word: str) -> float:
    value = float(_plain(word))
    if not math.isfinite(value):
        raise ValueError(word)
    return value


def _plain(word: str) -> str:
    """`word`, unless it is a number only to Python ("1_000")."""
    if "_" in word or not word.isascii():
        raise ValueError(word)
    return word


def _boolean(word: str) -> bool:
    if word not in _TRUE | _FALSE:
        raise ValueError(word)
    return word in _TRUE


_SCALARS: Mapping[type, Callable[[str], ParameterValue]] = {
    int: _integer,
    float: _number,
    bool: _boolean,
}
_KIND_NAMES: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
