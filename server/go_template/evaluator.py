"""Walks through the tree of a template with data in hand, and collects the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.go_template.errors import ExecutionError, TemplateError
from server.go_template.functions import FUNCTIONS, Function
from server.go_template.limits import MAX_DEPTH, Budget
from server.go_template.nodes import (
    Action,
    Body,
    Bool,
    Branches,
    Break,
    Call,
    Chain,
    Command,
    Continue,
    Dot,
    Field,
    Identifier,
    Nil,
    Node,
    Number,
    Operand,
    Pipe,
    Range,
    String,
    Text,
    Variable,
    describe,
)
from server.go_template.printing import plain_text
from server.go_template.values import (
    INVALID,
    Record,
    ValueDepthError,
    encode,
    is_list,
    is_map,
    is_nil,
    is_true,
    prints_json,
    sorted_items,
    type_name,
)
from server.wire.go_text import go_quote

# Longer descriptions of a place in the template are cut in errors.
_MAX_DESCRIPTION = 200


class _NoValue:
    """Nothing comes down the pipeline: the command is its first one."""


_NO_VALUE: Final = _NoValue()


class _LeaveRange(Exception):
    """`{{break}}` or `{{continue}}` on its way to its loop."""

    def __init__(self, *, is_break: bool) -> None:
        super().__init__()
        self.is_break = is_break


@dataclass
class _Variable:
    name: str
    value: Any


class Execution:
    """One rendering of a template."""

    def __init__(self, text: str, definitions: Mapping[str, Body], budget: Budget) -> None:
        self._text = text
        self._definitions = definitions
        self._budget = budget
        self._parts: list[str] = []
        self._variables: list[_Variable] = []
        self._at: Operand | Command | Call | Node | None = None
        self._name = ""
        self._depth = 0

    def run(self, root: Body, data: Any) -> str:
        """Raises TemplateError that names the place."""
        self._variables = [_Variable("$", data)]
        try:
            self._walk(root, data)
        except ExecutionError as error:
            raise TemplateError(f"{self._place()}{error}") from None
        except ValueDepthError:
            raise TemplateError(f"{self._place()}a value is nested too deep") from None
        return "".join(self._parts)

    def _place(self) -> str:
        node = self._at
        if node is None:
            return "template: : "
        line_start = self._text.rfind("\n", 0, node.pos) + 1
        line = self._text.count("\n", 0, line_start) + 1
        column = len(encode(self._text[line_start : node.pos]))
        words = ""
        if not isinstance(node, Text | Action | Break | Continue | Call | Branches | Range):
            words = describe(node)
        elif isinstance(node, Call):
            words = f"{{{{template {go_quote(node.name)}}}}}"
        if len(words) > _MAX_DESCRIPTION:
            words = f"{words[:_MAX_DESCRIPTION]}..."
        return f"template: :{line}:{column}: executing {go_quote(self._name)} at <{words}>: "

    # Nodes

    def _walk(self, body: Body, dot: Any) -> None:
        self._enter()
        for node in body.nodes:
            self._budget.step()
            if isinstance(node, Text):
                self._write(node.text)
            else:
                self._at = node
                self._walk_node(node, dot)
        self._depth -= 1

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExecutionError(f"exceeded maximum template depth ({MAX_DEPTH})")

    def _write(self, text: str) -> None:
        self._budget.write(len(text))
        self._parts.append(text)

    def _walk_node(self, node: Node, dot: Any) -> None:
        match node:
            case Action():
                value = self._pipe(node.pipe, dot)
                if not node.pipe.variables:
                    self._at = node.pipe
                    self._write("<no value>" if is_nil(value) else plain_text(value))
            case Branches():
                self._walk_branches(node, dot)
            case Range():
                self._walk_range(node, dot)
            case Call():
                self._walk_call(node, dot)
            case Break() | Continue():
                raise _LeaveRange(is_break=isinstance(node, Break))

    def _walk_branches(self, node: Branches, dot: Any) -> None:
        num_variables = len(self._variables)
        for pipe, body in node.branches:
            value = self._pipe(pipe, dot)
            if is_true(value):
                self._walk(body, value if node.sets_dot else dot)
                break
        else:
            if node.otherwise:
                self._walk(node.otherwise, dot)
        del self._variables[num_variables:]

    def _walk_range(self, node: Range, dot: Any) -> None:
        num_variables = len(self._variables)
        pairs = self._iterate(self._pipe(node.pipe, dot), node.pipe)
        num_in_body, depth = len(self._variables), self._depth
        is_empty = True
        for index, element in pairs:
            is_empty = False
            self._budget.step()
            self._set_loop_variables(node.pipe, index, element)
            try:
                self._walk(node.body, element)
            except _LeaveRange as leave:
                self._depth = depth
                if leave.is_break:
                    break
            finally:
                del self._variables[num_in_body:]
        if is_empty and node.otherwise:
            self._walk(node.otherwise, dot)
        del self._variables[num_variables:]

    def _iterate(self, value: Any, pipe: Pipe) -> Iterator[tuple[Any, Any]]:
        """The pairs that a loop goes through: of an index or a key, and an element."""
        if is_list(value):
            return enumerate(value)
        if is_map(value):
            return sorted_items(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if len(pipe.variables) > 1:
                raise ExecutionError(f"can't use {value} to iterate over more than one variable")
            return ((INVALID, number) for number in range(value))
        if is_nil(value):
            return iter(())
        raise ExecutionError(f"range can't iterate over {plain_text(value)}")

    def _set_loop_variables(self, pipe: Pipe, index: Any, element: Any) -> None:
        names = pipe.variables
        values: list[Any] = [element] if len(names) == 1 else [index, element]
        for offset, value in zip(range(-len(names), 0), values, strict=False):
            if pipe.is_assign:
                self._variable(names[offset]).value = value
            else:
                self._variables[offset] = _Variable(names[offset], value)

    def _walk_call(self, node: Call, dot: Any) -> None:
        body = self._definitions.get(node.name)
        if body is None:
            raise ExecutionError(f"template {go_quote(node.name)} not defined")
        value = self._pipe(node.pipe, dot) if node.pipe else INVALID
        variables, name = self._variables, self._name
        self._variables, self._name = [_Variable("$", value)], node.name
        self._walk(body, value)
        self._variables, self._name = variables, name

    # Pipelines

    def _variable(self, name: str) -> _Variable:
        """Of several with one name the innermost."""
        for each in reversed(self._variables):
            if each.name == name:
                return each
        raise ExecutionError(f"undefined variable: {name}")

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        self._enter()
        self._at = pipe
        value: Any = _NO_VALUE
        for command in pipe.commands:
            value = self._command(command, dot, value)
            value = INVALID if value is None else value
        for name in pipe.variables:
            if pipe.is_assign:
                self._variable(name).value = value
            else:
                self._variables.append(_Variable(name, value))
        self._depth -= 1
        return value

    def _command(self, command: Command, dot: Any, final: Any) -> Any:
        self._budget.step()
        first, rest = command.operands[0], command.operands[1:]
        self._at = first
        if isinstance(first, Identifier):
            return self._call(FUNCTIONS[first.name], first, rest, dot, final)
        has_arguments = bool(rest) or final is not _NO_VALUE
        if isinstance(first, Field | Chain) or (isinstance(first, Variable) and first.names[1:]):
            value = self._operand(first, dot, has_arguments=has_arguments)
        else:
            if has_arguments:
                raise ExecutionError(f"can't give argument to non-function {describe(first)}")
            if isinstance(first, Nil):
                raise ExecutionError("nil is not a command")
            value = self._operand(first, dot)
        return value

    def _operand(  # noqa: PLR0911 - one return for each kind of operand
        self, node: Operand, dot: Any, *, has_arguments: bool = False
    ) -> Any:
        """The value of anything that is no function with arguments."""
        self._at = node
        match node:
            case Dot():
                return dot
            case Nil():
                return None
            case Bool() | String():
                return node.value
            case Number():
                if node.value is None:
                    raise ExecutionError(f"{node.text} overflows int")
                return node.value
            case Field():
                return self._fields(dot, node.names, has_arguments)
            case Variable():
                value = self._variable(node.names[0]).value
                return self._fields(value, node.names[1:], has_arguments)
            case Pipe():
                return self._pipe(node, dot)
            case Chain():
                value = self._operand(node.operand, dot)
                self._at = node
                return self._fields(value, node.names, has_arguments)
            case Identifier():
                return self._call(FUNCTIONS[node.name], node, (), dot, _NO_VALUE)

    def _fields(self, value: Any, names: tuple[str, ...], has_arguments: bool) -> Any:
        for i, name in enumerate(names):
            value = self._field(value, name, has_arguments and i + 1 == len(names))
        return value

    def _field(self, value: Any, name: str, has_arguments: bool) -> Any:
        if value is INVALID:
            return INVALID
        if value is None:
            raise ExecutionError(f"nil pointer evaluating interface {{}}.{name}")
        if name == "String" and prints_json(value):
            return plain_text(value)
        if isinstance(value, Record):
            if name in value:
                if has_arguments:
                    raise ExecutionError(f"{name} has arguments but cannot be invoked as function")
                return value[name]
        elif is_map(value):
            if has_arguments:
                raise ExecutionError(f"{name} is not a method but has arguments")
            return value.get(name)
        raise ExecutionError(f"can't evaluate field {name} in type {type_name(value)}")

    # Functions

    def _call(
        self, function: Function, node: Operand, operands: tuple[Operand, ...], dot: Any, final: Any
    ) -> Any:
        has_final = final is not _NO_VALUE
        function.check_count(len(operands) + has_final, len(operands))
        if function.name in ("and", "or"):
            return self._first_deciding(function.name == "or", operands, dot, final)
        values = []
        for i, operand in enumerate(operands):
            value = self._operand(operand, dot)
            values.append(self._as_text(operand, value) if function.wants_text(i) else value)
        if has_final:
            if function.wants_text(len(values)) and not isinstance(final, str):
                raise ExecutionError(_wrong_type(final))
            values.append(final)
        self._at = node
        return function(self._budget, *values)

    def _first_deciding(
        self, truth: bool, operands: tuple[Operand, ...], dot: Any, final: Any
    ) -> Any:
        """The first value that is as true as `truth`, or the last one; no more are evaluated."""
        value: Any = INVALID
        for operand in operands:
            value = self._operand(operand, dot)
            if is_true(value) == truth:
                return value
        return value if final is _NO_VALUE else final

    def _as_text(self, operand: Operand, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(operand, Bool | Number):
            raise ExecutionError(f"expected string; found {describe(operand)}")
        if isinstance(operand, Nil):
            raise ExecutionError("cannot assign nil to string")
        raise ExecutionError(_wrong_type(value))


def _wrong_type(value: Any) -> str:
    if is_nil(value):
        return "invalid value; expected string"
    return f"wrong type for value; expected string; got {type_name(value)}"
