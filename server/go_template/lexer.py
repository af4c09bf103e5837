"""The text of a template, cut into tokens. One pass; no token is read twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from server.wire.go_text import go_quote


class Kind(Enum):
    """What a token is."""

    TEXT = "text"
    LEFT = "{{"
    RIGHT = "}}"
    SPACE = "space"
    ASSIGN = "="
    DECLARE = ":="
    PIPE = "|"
    COMMA = ","
    LEFT_PAREN = "("
    RIGHT_PAREN = ")"
    STRING = "string"
    RAW_STRING = "raw string"
    CHAR = "character constant"
    NUMBER = "number"
    BOOL = "bool"
    DOT = "."
    FIELD = "field"
    VARIABLE = "variable"
    IDENTIFIER = "identifier"
    KEYWORD = "keyword"
    NIL = "nil"
    OTHER = "other"
    ERROR = "error"
    END = "EOF"


class Token(NamedTuple):
    kind: Kind
    text: str
    pos: int

    def __str__(self) -> str:
        """As Go names it in errors."""
        if self.kind in (Kind.END, Kind.ERROR):
            return self.text
        if self.kind in (Kind.KEYWORD, Kind.NIL):
            return f"<{self.text}>"
        if len(self.text) > 10:
            return f"{go_quote(self.text[:10])}..."
        return go_quote(self.text)


_LEFT, _RIGHT = "{{", "}}"
_SPACES = " \t\r\n"
_KEYWORDS = frozenset(
    {"block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"}
)
_SIGNS = {
    "=": Kind.ASSIGN,
    "|": Kind.PIPE,
    ",": Kind.COMMA,
    "(": Kind.LEFT_PAREN,
    ")": Kind.RIGHT_PAREN,
}
_TERMINATORS = frozenset(_SPACES + ".,|:()")

_SPACE_RUN = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"\w*")
_STRING = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
_CHAR = re.compile(r"'(?:[^'\\\n]|\\[^\n])*'")
_RAW_STRING = re.compile(r"`[^`]*`")
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|0[oO][0-7_]*|0[bB][01_]*"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)


class _LexError(Exception):
    """A token that cannot be; the text from `pos` on is not read."""

    def __init__(self, problem: str, pos: int) -> None:
        super().__init__(problem)
        self.pos = pos


def tokens(text: str) -> Iterator[Token]:
    """Every token; the last one is END or ERROR."""
    try:
        yield from _Lexer(text).run()
    except _LexError as error:
        yield Token(Kind.ERROR, str(error), error.pos)


class _Lexer:
    """Walks through the text. `_at` is where the next token begins."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def run(self) -> Iterator[Token]:
        while True:
            start = self._at
            opening = self._text.find(_LEFT, start)
            if opening < 0:
                if start < len(self._text):
                    yield Token(Kind.TEXT, self._text[start:], start)
                yield Token(Kind.END, "EOF", len(self._text))
                return
            inner = opening + len(_LEFT)
            is_trimmed = self._is_left_marker(inner)
            written = self._text[start:opening]
            written = written.rstrip(_SPACES) if is_trimmed else written
            if written:
                yield Token(Kind.TEXT, written, start)
            self._at = inner + 2 * is_trimmed
            if self._text.startswith("/*", self._at):
                self._skip_comment()
            else:
                yield Token(Kind.LEFT, _LEFT, opening)
                yield from self._action()

    def _is_left_marker(self, at: int) -> bool:
        return self._text.startswith("-", at) and self._text[at + 1 : at + 2] in tuple(_SPACES)

    def _right_length(self, at: int) -> int:
        """The length of a right delimiter with its marker, 0 when there is none."""
        if self._text.startswith(_RIGHT, at):
            return len(_RIGHT)
        is_marked = self._text[at : at + 1] in tuple(_SPACES)
        return 4 if is_marked and self._text.startswith("-" + _RIGHT, at + 1) else 0

    def _skip_comment(self) -> None:
        start = self._at
        end = self._text.find("*/", start + 2)
        if end < 0:
            raise _LexError("unclosed comment", start)
        length = self._right_length(end + 2)
        if not length:
            raise _LexError("comment ends before closing delimiter", start)
        self._leave(end + 2, length)

    def _leave(self, at: int, length: int) -> None:
        """Goes behind a right delimiter, and behind white space if it is marked."""
        self._at = at + length
        if length > len(_RIGHT):
            self._at = self._run(_SPACE_RUN, self._at)

    def _action(self) -> Iterator[Token]:
        depth = 0
        while True:
            start = self._at
            length = self._right_length(start)
            if length:
                if depth:
                    raise _LexError("unclosed left paren", start)
                yield Token(Kind.RIGHT, _RIGHT, start + length - len(_RIGHT))
                self._leave(start, length)
                return
            if start >= len(self._text):
                raise _LexError("unclosed action", start)
            token = self._token(start)
            depth += (token.kind is Kind.LEFT_PAREN) - (token.kind is Kind.RIGHT_PAREN)
            if depth < 0:
                raise _LexError("unexpected right paren", start)
            yield token

    def _token(self, start: int) -> Token:  # noqa: PLR0911 - one return for each kind of token
        char = self._text[start]
        following = self._text[start + 1 : start + 2]
        if char in _SPACES:
            return self._spaces(start)
        if char in _SIGNS:
            return self._emit(_SIGNS[char], start, start + 1)
        if char == ":":
            if following != "=":
                raise _LexError("expected :=", start)
            return self._emit(Kind.DECLARE, start, start + 2)
        if char in "\"'`":
            return self._quoted(char, start)
        if char == "$":
            return self._name(Kind.VARIABLE, start)
        is_number = char in "+-0123456789"
        if is_number or (char == "." and following and following in "0123456789"):
            return self._number(start)
        if char == ".":
            return self._name(Kind.FIELD, start)
        if self._run(_WORD, start) > start:
            return self._word(start)
        if char.isascii() and char.isprintable():
            return self._emit(Kind.OTHER, start, start + 1)
        raise _LexError(f"unrecognized character in action: {_code_point(char)}", start)

    def _emit(self, kind: Kind, start: int, end: int) -> Token:
        self._at = end
        return Token(kind, self._text[start:end], start)

    def _run(self, pattern: re.Pattern[str], start: int) -> int:
        """The end of what the pattern, which matches nothing as well, matches."""
        found = pattern.match(self._text, start)
        assert found is not None
        return found.end()

    def _spaces(self, start: int) -> Token:
        """The last space may belong to a marked delimiter."""
        end = self._run(_SPACE_RUN, start)
        return self._emit(Kind.SPACE, start, end - (self._right_length(end - 1) > 2))

    def _quoted(self, quote: str, start: int) -> Token:
        kind, pattern, name = {
            '"': (Kind.STRING, _STRING, "quoted string"),
            "'": (Kind.CHAR, _CHAR, "character constant"),
            "`": (Kind.RAW_STRING, _RAW_STRING, "raw quoted string"),
        }[quote]
        found = pattern.match(self._text, start)
        if not found:
            raise _LexError(f"unterminated {name}", start)
        return self._emit(kind, start, found.end())

    def _number(self, start: int) -> Token:
        end = self._run(_NUMBER, start)
        after = self._text[end : end + 1]
        if after and after in "+-":
            raise _LexError("complex numbers are not supported", start)
        if self._run(_WORD, end) > end:
            raise _LexError(f"bad number syntax: {go_quote(self._text[start : end + 1])}", start)
        return self._emit(Kind.NUMBER, start, end)

    def _name(self, kind: Kind, start: int) -> Token:
        """A field or a variable; a lone `.` is the dot, a lone `$` a variable."""
        end = self._run(_WORD, start + 1)
        self._check_terminated(start, end)
        if kind is Kind.FIELD and end == start + 1:
            kind = Kind.DOT
        return self._emit(kind, start, end)

    def _word(self, start: int) -> Token:
        end = self._run(_WORD, start)
        self._check_terminated(start, end)
        word = self._text[start:end]
        if word in _KEYWORDS:
            return self._emit(Kind.KEYWORD, start, end)
        if word in ("true", "false"):
            return self._emit(Kind.BOOL, start, end)
        return self._emit(Kind.NIL if word == "nil" else Kind.IDENTIFIER, start, end)

    def _check_terminated(self, start: int, end: int) -> None:
        after = self._text[end : end + 1]
        if after and after not in _TERMINATORS and not self._text.startswith(_RIGHT, end):
            raise _LexError(f"bad character {_code_point(after)}", start)


def _code_point(char: str) -> str:
    """As Go's %#U prints it."""
    name = f"U+{ord(char):04X}"
    return f"{name} '{char}'" if char.isprintable() else name
