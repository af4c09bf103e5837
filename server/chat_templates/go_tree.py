"""What Ollama reads off the tree of a Go template: its variables, its tags, its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from server.chat_templates.base import ThinkingTags
from server.go_template import Template
from server.go_template.nodes import (
    Action,
    Body,
    Branches,
    Call,
    Chain,
    Field,
    Node,
    Operand,
    Pipe,
    Range,
    Text,
    Variable,
)

# What a call begins with when the template does not show it: any JSON object.
ANY_OBJECT = "{"


def variable_names(template: Template) -> frozenset[str]:
    """The names of all fields and variables, in lower case."""
    bodies = [template.root, *template.definitions.values()]
    return frozenset(
        name.lower() for body in bodies for pipe, _ in _pipes(body, ()) for name in _names(pipe)
    )


def thinking_tags(template: Template) -> ThinkingTags | None:
    """The texts around `.Thinking` in the loop over the messages."""
    opening = closing = ""
    for pipe, bodies in _pipes(template.root, ()):
        used = [each for each in _fields(pipe) if each.names[0] == "Thinking"]
        loops = [body.is_message_loop for body in bodies if body.is_message_loop is not None]
        if not used or not loops or not loops[-1]:
            continue
        nodes = bodies[-1].nodes
        first, last = (nodes[0], nodes[-1]) if nodes else (None, None)
        opening = first.text.strip() if isinstance(first, Text) else opening
        closing = last.text.strip() if isinstance(last, Text) else closing
    if not opening or not closing:
        return None
    # The template may write a part of the tag before it branches: "<", then "think>".
    whole = closing.replace("</", "<", 1)
    return ThinkingTags(whole if whole.endswith(opening) else opening, closing)


def tool_tag(template: Template) -> str:
    """The first text behind `{{ if .ToolCalls }}`, up to the JSON in it."""
    calls = _tool_calls_body(template.root)
    text = _first_text(calls.nodes) if calls else ""
    return text.partition("{")[0].strip() or ANY_OBJECT


def cut_behind_response(body: Body) -> Body:
    """The template up to where the reply is written."""
    return _Cutter().body(body)


@dataclass(frozen=True)
class _Inside:
    """A body that a pipeline lies in. `nodes` are empty for the condition of an `else if`.

    `is_message_loop` says of a loop whether it goes through the messages; None: it is no loop.
    """

    nodes: tuple[Node, ...]
    is_message_loop: bool | None = None


def _pipes(body: Body, outer: tuple[_Inside, ...]) -> Iterator[tuple[Pipe, tuple[_Inside, ...]]]:
    """Every pipeline of a body with what it lies in, in the order of the text."""
    here = (*outer, _Inside(body.nodes))
    for node in body.nodes:
        match node:
            case Action():
                yield node.pipe, here
            case Call():
                if node.pipe:
                    yield node.pipe, here
            case Branches():
                for i, (pipe, inner) in enumerate(node.branches):
                    yield pipe, here if i == 0 else (*outer, _Inside(()))
                    yield from _pipes(inner, here)
                if node.otherwise:
                    yield from _pipes(node.otherwise, here)
            case Range():
                yield node.pipe, here
                is_loop = any(each.names[0] == "Messages" for each in _fields(node.pipe))
                inside = (*here, _Inside((), is_loop))
                yield from _pipes(node.body, inside)
                if node.otherwise:
                    yield from _pipes(node.otherwise, inside)


def _operands(pipe: Pipe) -> Iterator[Operand]:
    for command in pipe.commands:
        for operand in command.operands:
            yield operand
            inner = operand.operand if isinstance(operand, Chain) else operand
            if isinstance(inner, Pipe):
                yield from _operands(inner)


def _fields(pipe: Pipe) -> Iterator[Field]:
    """The fields of the dot, and those of `$`, which is the dot of the whole template."""
    for operand in _operands(pipe):
        if isinstance(operand, Field):
            yield operand
        elif isinstance(operand, Variable) and operand.names[0] == "$" and operand.names[1:]:
            yield Field(operand.pos, operand.names[1:])


def _names(pipe: Pipe) -> Iterator[str]:
    for operand in _operands(pipe):
        if isinstance(operand, Field | Variable | Chain):
            yield from operand.names


def _tool_calls_body(body: Body) -> Body | None:
    """What is written when a message has calls."""
    for node in body.nodes:
        inner: list[Body] = []
        if isinstance(node, Branches):
            for pipe, branch in node.branches:
                if not node.sets_dot and any("ToolCalls" in each.names for each in _fields(pipe)):
                    return branch
                inner.append(branch)
            inner += [node.otherwise] if node.otherwise else []
        elif isinstance(node, Range):
            inner = [node.body, *([node.otherwise] if node.otherwise else [])]
        for each in inner:
            found = _tool_calls_body(each)
            if found:
                return found
    return None


def _first_text(nodes: Sequence[Node]) -> str:
    """The first text before any value is written."""
    for node in nodes:
        match node:
            case Text():
                if node.text.strip():
                    return node.text
            case Range():
                return _first_text(node.body.nodes)
            case Branches():
                return _first_text(node.branches[0][1].nodes)
            case Action() if not node.pipe.variables:
                return ""
    return ""


class _Cutter:
    """Goes through a tree until it has met `.Response`, and drops the rest."""

    def __init__(self) -> None:
        self._is_cut = False

    def body(self, body: Body) -> Body:
        nodes: list[Node] = []
        for node in body.nodes:
            if self._is_cut:
                break
            kept = self._node(node)
            nodes += [kept] if kept else []
        return replace(body, nodes=tuple(nodes))

    def _node(self, node: Node) -> Node | None:
        match node:
            case Action():
                return self._action(node)
            case Branches():
                branches = tuple((pipe, self.body(inner)) for pipe, inner in node.branches)
                otherwise = self.body(node.otherwise) if node.otherwise else None
                return replace(node, branches=branches, otherwise=otherwise)
            case Range():
                inner = self.body(node.body)
                otherwise = self.body(node.otherwise) if node.otherwise else None
                return replace(node, body=inner, otherwise=otherwise)
        return node

    def _action(self, action: Action) -> Action | None:
        """The action up to `.Response`; None when its pipeline goes on behind that."""
        for number, command in enumerate(action.pipe.commands, 1):
            for i, operand in enumerate(command.operands):
                if isinstance(operand, Field) and "Response" in operand.names:
                    self._is_cut = True
                    if number < len(action.pipe.commands):
                        return None
                    shortened = replace(command, operands=command.operands[: i + 1])
                    commands = (*action.pipe.commands[:-1], shortened)
                    return replace(action, pipe=replace(action.pipe, commands=commands))
        return action
