"""The parts of a parsed template. `pos` is an index into its text, for errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    pos: int
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    pos: int


@dataclass(frozen=True, slots=True)
class Nil:
    pos: int


@dataclass(frozen=True, slots=True)
class Bool:
    pos: int
    value: bool


@dataclass(frozen=True, slots=True)
class Number:
    """`value` is None for a whole number that an int cannot hold."""

    pos: int
    text: str
    value: int | float | None


@dataclass(frozen=True, slots=True)
class String:
    pos: int
    quoted: str
    value: str


@dataclass(frozen=True, slots=True)
class Identifier:
    """The name of a function."""

    pos: int
    name: str


@dataclass(frozen=True, slots=True)
class Field:
    """`.A.B`"""

    pos: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x.A.B`; the first name is the variable's, with its $."""

    pos: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Fields of a parenthesised pipeline or of a function's result."""

    pos: int
    operand: Pipe | Identifier
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    pos: int
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """`variables` are declared by the pipeline, or assigned to if `is_assign`."""

    pos: int
    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    is_assign: bool = False


Operand = Dot | Nil | Bool | Number | String | Identifier | Field | Variable | Chain | Pipe


@dataclass(frozen=True, slots=True)
class Action:
    pos: int
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Break:
    pos: int


@dataclass(frozen=True, slots=True)
class Continue:
    pos: int


@dataclass(frozen=True, slots=True)
class Call:
    """`{{template "name" pipe}}`"""

    pos: int
    name: str
    pipe: Pipe | None


@dataclass(frozen=True, slots=True)
class Body:
    """What stands between two actions of a control structure, or is a whole template."""

    pos: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Branches:
    """`if` or (`sets_dot`) `with`, each with its `else if` or `else with` in a row."""

    pos: int
    branches: tuple[tuple[Pipe, Body], ...]
    otherwise: Body | None
    sets_dot: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    pos: int
    pipe: Pipe
    body: Body
    otherwise: Body | None


Node = Text | Action | Break | Continue | Call | Branches | Range


def describe(node: Operand | Command) -> str:
    """A node as Go writes it in errors."""
    parts: list[str] = []
    _describe(node, parts)
    return "".join(parts)


def _describe(node: Operand | Command, parts: list[str]) -> None:  # noqa: PLR0912 - one for each kind
    match node:
        case Dot():
            parts.append(".")
        case Nil():
            parts.append("nil")
        case Bool():
            parts.append("true" if node.value else "false")
        case Number():
            parts.append(node.text)
        case String():
            parts.append(node.quoted)
        case Identifier():
            parts.append(node.name)
        case Field():
            parts += [f".{name}" for name in node.names]
        case Variable():
            parts.append(".".join(node.names))
        case Chain():
            _describe_nested(node.operand, parts)
            parts += [f".{name}" for name in node.names]
        case Command():
            for i, operand in enumerate(node.operands):
                parts.append(" " if i else "")
                _describe_nested(operand, parts)
        case Pipe():
            if node.variables:
                parts.append(", ".join(node.variables) + (" = " if node.is_assign else " := "))
            _describe_commands(node.commands, parts)


def _describe_nested(operand: Operand, parts: list[str]) -> None:
    is_pipe = isinstance(operand, Pipe)
    parts.append("(" if is_pipe else "")
    _describe(operand, parts)
    parts.append(")" if is_pipe else "")


def _describe_commands(commands: Sequence[Command], parts: list[str]) -> None:
    for i, command in enumerate(commands):
        parts.append(" | " if i else "")
        _describe(command, parts)
