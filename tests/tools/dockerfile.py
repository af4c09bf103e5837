"""Reads a Dockerfile and a .dockerignore: the part of their language that ours are written in.

What it does not know is an error, so that nothing is skipped unseen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_KNOWN = frozenset(
    {
        *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL"),
        *("RUN", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
    }
)
# A word may have quoted parts; a backslash takes the meaning of what follows.
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""")
_VARIABLE = re.compile(r"\\(.)|\$(?:(\w+)|\{(\w+)(?::(-|\+)([^}]*))?\})")


class DockerfileError(Exception):
    """A line that cannot be understood; the message begins with its number."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: `flags` are those of the form --name=value, `text` is what follows them."""

    line: int
    name: str
    flags: Mapping[str, str]
    text: str

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """The text as words, variables replaced and quotes taken away."""
        return [_without_quotes(word, variables) for word in _WORD.findall(self.text)]

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The text as KEY=VALUE; a key without a value has none (""), which ARG allows."""
        divided = (word.partition("=") for word in self.words(variables))
        return {key: value for key, _, value in divided}

    def command(self) -> list[str]:
        """The words of the exec form, `["a", "b"]`; those of a shell for the other."""
        if self.text.startswith("["):
            words = json.loads(self.text)
            if not all(isinstance(word, str) for word in words):
                raise DockerfileError(f"{self.line}: not a list of strings: {self.text}")
            return list(words)
        return ["/bin/sh", "-c", self.text]


@dataclass
class Stage:
    """What one FROM begins; `base` may hold variables, which are the file's first arguments."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True)
class Dockerfile:
    arguments: Mapping[str, str]  # those before the first FROM
    stages: list[Stage]


def parse_dockerfile(text: str) -> Dockerfile:
    """Raises DockerfileError."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            base, *name = instruction.text.split()
            if name and (len(name) != 2 or name[0].upper() != "AS"):
                raise DockerfileError(f"{instruction.line}: not FROM image AS name")
            stages.append(Stage(base, name[1] if name else str(len(stages))))
        elif stages:
            stages[-1].instructions.append(instruction)
        elif instruction.name == "ARG":
            arguments |= instruction.pairs(arguments)
        else:
            raise DockerfileError(f"{instruction.line}: {instruction.name} before FROM")
    return Dockerfile(arguments, stages)


def _instructions(text: str) -> Iterator[Instruction]:
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        first = first if joined else number
        if line.rstrip().endswith("\\"):
            joined += line.rstrip()[:-1]
            continue
        yield _instruction(first, joined + line)
        joined = ""
    if joined:
        raise DockerfileError(f"{first}: the last line goes on")


def _instruction(line: int, text: str) -> Instruction:
    name, _, rest = text.strip().partition(" ")
    name, rest = name.upper(), rest.strip()
    if name not in _KNOWN:
        raise DockerfileError(f"{line}: unknown instruction {name}")
    flags: dict[str, str] = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    if rest.startswith("--"):
        raise DockerfileError(f"{line}: unknown flag in {rest}")
    return Instruction(line, name, flags, rest)


def _without_quotes(word: str, variables: Mapping[str, str]) -> str:
    parts = re.findall(r"""'[^']*'|"(?:[^"\\]|\\.)*"|(?:[^"'\\]|\\.)+""", word)
    return "".join(
        part[1:-1] if part.startswith("'") else expand(part.strip('"'), variables) for part in parts
    )


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$name`, `${name}`, `${name:-if empty}`, `${name:+if not}`; a backslash keeps the next."""

    def value(match: re.Match[str]) -> str:
        escaped, plain, braced, rule, other = match.groups()
        if escaped is not None:
            return str(escaped)
        found = variables.get(plain or braced, "")
        if rule == "+":
            return str(other) if found else ""
        return found or str(other or "")

    return _VARIABLE.sub(value, text)


class IgnoreFile:
    """The rules of a .dockerignore; the last one that fits a path or a folder above it decides."""

    def __init__(self, text: str) -> None:
        lines = (line.strip() for line in text.splitlines())
        self._rules = [
            (_pattern(line.lstrip("!").strip("/")), not line.startswith("!"))
            for line in lines
            if line and not line.startswith("#")
        ]

    def ignores(self, path: PurePosixPath) -> bool:
        """Whether the build does not see `path`, relative to the context."""
        is_ignored = False
        names = [str(path), *(str(parent) for parent in path.parents if parent.name)]
        for pattern, ignores in self._rules:
            if any(pattern.fullmatch(name) for name in names):
                is_ignored = ignores
        return is_ignored

    def files(self, context: Path) -> Iterator[PurePosixPath]:
        """The files under `context` that the build sees."""
        for path in sorted(context.rglob("*")):
            relative = PurePosixPath(path.relative_to(context))
            if path.is_file() and not self.ignores(relative):
                yield relative


def _pattern(rule: str) -> re.Pattern[str]:
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", rule)
    return re.compile("".join(special.get(part, re.escape(part)) for part in parts))
