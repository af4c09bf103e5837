"""From tokens to the tree of a template."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from server.go_template.errors import TemplateError
from server.go_template.lexer import Kind, Token, tokens
from server.go_template.limits import MAX_DEPTH
from server.go_template.literals import LiteralError, parse_char, parse_number, unquote
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
)
from server.wire.go_text import go_quote

_OPERANDS = frozenset(
    {
        Kind.BOOL, Kind.CHAR, Kind.DOT, Kind.FIELD, Kind.IDENTIFIER, Kind.NUMBER, Kind.NIL,
        Kind.RAW_STRING, Kind.STRING, Kind.VARIABLE, Kind.LEFT_PAREN,
    }
)  # fmt: skip
# What cannot take the value that a pipeline hands on.
_NOT_EXECUTABLE = (Bool, Dot, Nil, Number, String)


@dataclass
class _Scope:
    """What a definition of its own starts anew."""

    variables: list[str] = field(default_factory=lambda: ["$"])
    range_depth: int = 0


@dataclass(frozen=True)
class _Stop:
    """Where a body ends: at `{{end}}` or `{{else}}`, the latter perhaps with a word behind it."""

    word: str
    is_else: bool


def parse_tree(text: str, functions: Collection[str]) -> tuple[Body, dict[str, Body]]:
    """The body of a template and those that it defines. Raises TemplateError with the line."""
    return _Parser(text, functions).parse()


class _Parser:
    """Reads tokens one by one; up to three of them can be put back."""

    def __init__(self, text: str, functions: Collection[str]) -> None:
        self._text = text
        self._functions = functions
        self._source: Iterator[Token] = tokens(text)
        self._back: list[Token] = []
        self._newest = Token(Kind.TEXT, "", 0)  # its line is named in errors
        self._action_pos = -1
        self._depth = 0
        self._scope = _Scope()
        self._definitions: dict[str, Body] = {}

    def parse(self) -> tuple[Body, dict[str, Body]]:
        nodes: list[Node] = []
        while self._peek().kind is not Kind.END:
            left = self._peek()
            if left.kind is Kind.LEFT and self._is_definition():
                self._definition()
                continue
            node = self._text_or_action()
            if isinstance(node, _Stop):
                raise self._error(f"unexpected {{{{{node.word}}}}}")
            nodes += [node] if node else []
        return Body(0, tuple(nodes)), self._definitions

    # Tokens

    def _next(self) -> Token:
        if self._back:
            return self._back.pop()
        token = next(self._source, self._newest)
        self._newest = token
        return token

    def _put_back(self, *read: Token) -> None:
        """`read` in the order of the text."""
        self._back += reversed(read)

    def _peek(self) -> Token:
        token = self._next()
        self._put_back(token)
        return token

    def _next_word(self) -> Token:
        token = self._next()
        return self._next() if token.kind is Kind.SPACE else token

    def _peek_word(self) -> Token:
        token = self._next_word()
        self._put_back(token)
        return token

    def _expect(self, context: str, *kinds: Kind) -> Token:
        token = self._next_word()
        if token.kind not in kinds:
            raise self._unexpected(token, context)
        return token

    def _line(self, pos: int) -> int:
        return self._text.count("\n", 0, pos) + 1

    def _error(self, problem: str) -> TemplateError:
        return TemplateError(f"template: :{self._line(self._newest.pos)}: {problem}")

    def _unexpected(self, token: Token, context: str) -> TemplateError:
        if token.kind is not Kind.ERROR:
            return self._error(f"unexpected {token} in {context}")
        started = self._line(max(self._action_pos, 0))
        if self._action_pos < 0 or started == self._line(token.pos):
            return self._error(token.text)
        words = "" if token.text.endswith(" action") else " in action"
        return self._error(f"{token.text}{words} started at :{started}")

    # Text and actions

    def _is_definition(self) -> bool:
        """Whether `{{define` comes next; if so, both tokens are read."""
        left = self._next()
        word = self._next_word()
        if word.kind is Kind.KEYWORD and word.text == "define":
            return True
        self._put_back(left, word)
        return False

    def _definition(self) -> None:
        context = "define clause"
        name = self._unquoted(self._expect(context, Kind.STRING, Kind.RAW_STRING))
        self._expect(context, Kind.RIGHT)
        self._define(name, context)

    def _define(self, name: str, context: str) -> None:
        """Reads a definition up to its end. Variables from outside are not seen in it."""
        outer, self._scope = self._scope, _Scope()
        body, stop = self._body()
        if stop.is_else:
            raise self._error(f"unexpected {{{{else}}}} in {context}")
        self._scope = outer
        if name in self._definitions and _has_content(self._definitions[name]):
            if _has_content(body):
                raise self._error(f"template: multiple definition of template {go_quote(name)}")
            return
        self._definitions[name] = body

    def _body(self) -> tuple[Body, _Stop]:
        """Text and actions up to `{{end}}` or `{{else}}`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels")
        start = self._peek_word().pos
        nodes: list[Node] = []
        while self._peek_word().kind is not Kind.END:
            node = self._text_or_action()
            if isinstance(node, _Stop):
                self._depth -= 1
                return Body(start, tuple(nodes)), node
            nodes += [node] if node else []
        raise self._error("unexpected EOF")

    def _text_or_action(self) -> Node | _Stop | None:
        token = self._next_word()
        if token.kind is Kind.TEXT:
            return Text(token.pos, token.text)
        if token.kind is not Kind.LEFT:
            raise self._unexpected(token, "input")
        self._action_pos = token.pos
        node = self._action()
        self._action_pos = -1
        return node

    def _action(self) -> Node | _Stop:
        token = self._next_word()
        if token.kind is Kind.KEYWORD and token.text != "define":
            return self._keyword(token)
        self._put_back(token)
        return Action(token.pos, self._pipeline("command", Kind.RIGHT))

    def _keyword(self, token: Token) -> Node | _Stop:  # noqa: PLR0911 - one for each word
        match token.text:
            case "if" | "with":
                return self._branches(token)
            case "range":
                return self._range()
            case "end":
                self._expect("end", Kind.RIGHT)
                return _Stop("end", is_else=False)
            case "else":
                return self._else()
            case "template":
                return self._call()
            case "block":
                return self._block()
            case word:
                return self._leave_range(token, word)

    def _leave_range(self, token: Token, word: str) -> Node:
        self._expect(f"{{{{{word}}}}}", Kind.RIGHT)
        if not self._scope.range_depth:
            raise self._error(f"{{{{{word}}}}} outside {{{{range}}}}")
        return Break(token.pos) if word == "break" else Continue(token.pos)

    def _else(self) -> _Stop:
        token = self._peek_word()
        if token.kind is Kind.KEYWORD and token.text in ("if", "with"):
            return _Stop(token.text, is_else=True)
        self._expect("else", Kind.RIGHT)
        return _Stop("else", is_else=True)

    def _branches(self, first: Token) -> Branches:
        """All of `if`, `else if`, …, `else`, `end`; or the same of `with`."""
        num_variables = len(self._scope.variables)
        branches: list[tuple[Pipe, Body]] = []
        otherwise: Body | None = None
        while True:
            pipe = self._pipeline(first.text, Kind.RIGHT)
            body, stop = self._body()
            branches.append((pipe, body))
            if stop.is_else and stop.word == first.text:
                self._next_word()  # the word itself
                continue
            if stop.is_else:
                otherwise = self._last_body(stop)
            break
        del self._scope.variables[num_variables:]
        return Branches(branches[0][0].pos, tuple(branches), otherwise, first.text == "with")

    def _last_body(self, stop: _Stop) -> Body:
        """What follows `{{else}}`, up to `{{end}}`."""
        if stop.word != "else":
            raise self._unexpected(self._next_word(), "input")
        body, end = self._body()
        if end.is_else:
            raise self._error("expected end; found {{else}}")
        return body

    def _range(self) -> Range:
        num_variables = len(self._scope.variables)
        pipe = self._pipeline("range", Kind.RIGHT)
        self._scope.range_depth += 1
        body, stop = self._body()
        self._scope.range_depth -= 1
        otherwise = self._last_body(stop) if stop.is_else else None
        del self._scope.variables[num_variables:]
        return Range(pipe.pos, pipe, body, otherwise)

    def _call(self) -> Call:
        token = self._next_word()
        name = self._template_name(token, "template clause")
        following = self._next_word()
        pipe = None
        if following.kind is not Kind.RIGHT:
            self._put_back(following)
            pipe = self._pipeline("template clause", Kind.RIGHT)
        return Call(token.pos, name, pipe)

    def _block(self) -> Call:
        context = "block clause"
        token = self._next_word()
        name = self._template_name(token, context)
        pipe = self._pipeline(context, Kind.RIGHT)
        self._define(name, context)
        return Call(token.pos, name, pipe)

    def _template_name(self, token: Token, context: str) -> str:
        if token.kind not in (Kind.STRING, Kind.RAW_STRING):
            raise self._unexpected(token, context)
        return self._unquoted(token)

    # Pipelines

    def _pipeline(self, context: str, end: Kind) -> Pipe:
        start = self._peek_word().pos
        variables, is_assign = self._declarations(context)
        commands: list[Command] = []
        while True:
            token = self._next_word()
            if token.kind is end:
                break
            if token.kind not in _OPERANDS:
                raise self._unexpected(token, context)
            self._put_back(token)
            commands.append(self._command())
        if not commands:
            raise self._error(f"missing value for {context}")
        for number, command in enumerate(commands[1:], 2):
            if isinstance(command.operands[0], _NOT_EXECUTABLE):
                raise self._error(f"non executable command in pipeline stage {number}")
        return Pipe(start, tuple(commands), variables, is_assign)

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        """The variables that a pipeline sets, and whether they must exist already."""
        names: list[str] = []
        while self._peek_word().kind is Kind.VARIABLE:
            variable = self._next_word()
            after = self._next()
            space = [after] if after.kind is Kind.SPACE else []
            sign = self._next() if space else after
            if sign.kind in (Kind.ASSIGN, Kind.DECLARE):
                self._declare(names, variable.text)
                return tuple(names), sign.kind is Kind.ASSIGN
            if sign.kind is not Kind.COMMA:
                self._put_back(variable, *space, sign)
                break
            self._declare(names, variable.text)
            if context != "range" or len(names) > 1:
                raise self._error(f"too many declarations in {context}")
            if self._peek_word().kind not in (Kind.VARIABLE, Kind.RIGHT, Kind.RIGHT_PAREN):
                raise self._error("range can only initialize variables")
        return tuple(names), False

    def _declare(self, names: list[str], name: str) -> None:
        names.append(name)
        self._scope.variables.append(name)

    def _command(self) -> Command:
        start = self._peek_word().pos
        operands: list[Operand] = []
        while True:
            self._peek_word()
            operand = self._operand()
            operands += [operand] if operand else []
            token = self._next()
            if token.kind is Kind.SPACE:
                continue
            if token.kind in (Kind.RIGHT, Kind.RIGHT_PAREN):
                self._put_back(token)
            elif token.kind is not Kind.PIPE:
                raise self._unexpected(token, "operand")
            break
        if not operands:
            raise self._error("empty command")
        return Command(start, tuple(operands))

    def _operand(self) -> Operand | None:
        """A term with its fields; None when something else comes next."""
        node = self._term()
        if node is None or self._peek().kind is not Kind.FIELD:
            return node
        start = self._peek().pos
        names: list[str] = []
        while self._peek().kind is Kind.FIELD:
            names.append(self._next().text[1:])
        if isinstance(node, Field):
            return Field(start, (*node.names, *names))
        if isinstance(node, Variable):
            return Variable(start, (*node.names, *names))
        if isinstance(node, Pipe | Identifier):
            return Chain(start, node, tuple(names))
        raise self._error(f"unexpected . after term {go_quote(self._text[node.pos : start])}")

    def _term(self) -> Operand | None:  # noqa: PLR0911 - one return for each kind of term
        token = self._next_word()
        match token.kind:
            case Kind.IDENTIFIER:
                if token.text not in self._functions:
                    raise self._error(f"function {go_quote(token.text)} not defined")
                return Identifier(token.pos, token.text)
            case Kind.DOT:
                return Dot(token.pos)
            case Kind.NIL:
                return Nil(token.pos)
            case Kind.VARIABLE:
                if token.text not in self._scope.variables:
                    raise self._error(f"undefined variable {go_quote(token.text)}")
                return Variable(token.pos, (token.text,))
            case Kind.FIELD:
                return Field(token.pos, (token.text[1:],))
            case Kind.BOOL:
                return Bool(token.pos, token.text == "true")
            case Kind.CHAR | Kind.NUMBER:
                return self._constant(token)
            case Kind.LEFT_PAREN:
                return self._parenthesized()
            case Kind.STRING | Kind.RAW_STRING:
                return String(token.pos, token.text, self._unquoted(token))
        self._put_back(token)
        return None

    def _parenthesized(self) -> Pipe:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("max expression depth exceeded")
        pipe = self._pipeline("parenthesized pipeline", Kind.RIGHT_PAREN)
        self._depth -= 1
        return pipe

    def _constant(self, token: Token) -> Number:
        try:
            read = parse_char if token.kind is Kind.CHAR else parse_number
            return Number(token.pos, token.text, read(token.text))
        except LiteralError as error:
            raise self._error(str(error)) from None

    def _unquoted(self, token: Token) -> str:
        try:
            return unquote(token.text)
        except LiteralError as error:
            raise self._error(str(error)) from None


def _has_content(body: Body) -> bool:
    """Whether there is more than white space."""
    return any(not isinstance(node, Text) or node.text.strip() for node in body.nodes)
