"""JSON read as Go's encoding/json reads it, down to the words of its errors, which users see."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from server.wire.errors import TOO_DEEP, ApiError
from server.wire.go_text import go_quote

_MAX_INT = 2**63 - 1
# The scanner for the words of an error takes a second for 3 MB.
_MAX_SCANNED = 1 << 20
# Each list or object takes twenty times its "[]," in memory, and nothing else runs meanwhile. In
# text they are counted, too: 16 MB of source code have fewer.
_MAX_BRACKETS = 500_000
_MAX_SHOWN_DIGITS = 100
_SPACE = " \t\r\n"
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(r"[0-9]*")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
# An escaped surrogate: the only way to one, because the body is read as UTF-8 first.
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_body(body: bytes) -> Any:
    """The first JSON value in `body`; what follows it is ignored. Raises ApiError (400)."""
    if not body.strip(_SPACE.encode()):
        raise ApiError(400, "missing request body")
    if body.count(b"[") + body.count(b"{") > _MAX_BRACKETS:
        raise ApiError(413, f"request body too large: more than {_MAX_BRACKETS} '[' and '{{'")
    text = body.decode("utf-8", errors="replace")
    try:
        value, _ = _DECODER.raw_decode(text.lstrip(_SPACE))
        return _replace_surrogates(value) if _SURROGATE_ESCAPE.search(body) else value
    except RecursionError:
        raise ApiError(400, TOO_DEEP) from None
    except json.JSONDecodeError as error:
        if len(body) > _MAX_SCANNED:
            raise ApiError(400, f"invalid JSON at character {error.pos}: {error.msg}") from None
        raise ApiError(400, _SyntaxScanner(body).describe()) from None


def _parse_int(digits: str) -> int | float:
    """Go keeps 64 bits; a larger number only fits a float."""
    if len(digits) > 20:
        return _parse_float(digits)
    value = int(digits)
    return value if -_MAX_INT - 1 <= value <= _MAX_INT else float(value)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        shown = digits if len(digits) <= _MAX_SHOWN_DIGITS else f"{digits[:_MAX_SHOWN_DIGITS]}..."
        raise ApiError(400, f"json: cannot unmarshal number {shown} into Go value of type float64")
    return value


def _refuse_constant(word: str) -> Any:
    raise json.JSONDecodeError("not JSON", word, 0)


_DECODER = json.JSONDecoder(
    parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant
)


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_replace_surrogates(k): _replace_surrogates(v) for k, v in value.items()}
    return value


class _Unexpected(Exception):
    """The text ends, or goes on, in a way that JSON does not allow."""


class _SyntaxScanner:
    """Walks through text that is known to be no JSON, to say where it fails in Go's words."""

    def __init__(self, body: bytes) -> None:
        self._text = body.decode("latin-1")  # Go's scanner sees bytes
        self._at = 0

    def describe(self) -> str:
        try:
            self._value()
        except _Unexpected as error:
            return str(error)
        return "unexpected EOF"

    def _peek(self, *, skip_space: bool = False) -> str:
        if skip_space:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
        if self._at >= len(self._text):
            raise _Unexpected("unexpected EOF")
        return self._text[self._at]

    def _refuse(self, context: str) -> _Unexpected:
        char = self._text[self._at]
        quoted = {"'": "\\'", '"': '"'}.get(char, go_quote(char)[1:-1])
        return _Unexpected(f"invalid character '{quoted}' {context}")

    def _value(self) -> None:
        """One value; nested ones on a stack of "{" and "[" instead of the interpreter's."""
        stack: list[str] = []
        while True:
            opened = self._begin_value()
            if opened:
                stack.append(opened)
                if not self._is_closed_at_once(opened):
                    continue
                stack.pop()
            if not self._continue_in(stack):
                return

    def _begin_value(self) -> str:
        """Reads a scalar (""), or the bracket that opens an object or a list ("{" or "[")."""
        char = self._peek(skip_space=True)
        if char in "{[":
            self._at += 1
            return char
        if char == '"':
            self._string()
        elif char in _LITERALS:
            self._literal(_LITERALS[char])
        elif char in "-0123456789":
            self._number()
        else:
            raise self._refuse("looking for beginning of value")
        return ""

    def _is_closed_at_once(self, opened: str) -> bool:
        char = self._peek(skip_space=True)
        if char == ("}" if opened == "{" else "]"):
            self._at += 1
            return True
        if opened == "{":
            self._key()
        return False

    def _continue_in(self, stack: list[str]) -> bool:
        """After a value: whether another one follows in what is still open."""
        while stack:
            char = self._peek(skip_space=True)
            if char == ",":
                self._at += 1
                if stack[-1] == "{":
                    self._key()
                return True
            if char != ("}" if stack[-1] == "{" else "]"):
                raise self._refuse(
                    "after object key:value pair" if stack[-1] == "{" else "after array element"
                )
            self._at += 1
            stack.pop()
        return False

    def _key(self) -> None:
        if self._peek(skip_space=True) != '"':
            raise self._refuse("looking for beginning of object key string")
        self._string()
        if self._peek(skip_space=True) != ":":
            raise self._refuse("after object key")
        self._at += 1

    def _string(self) -> None:
        self._at += 1
        while True:
            run = _STRING_RUN.match(self._text, self._at)
            assert run is not None  # the pattern matches the empty string
            self._at = run.end()
            char = self._peek()
            if char == '"':
                self._at += 1
                return
            if char != "\\":
                raise self._refuse("in string literal")
            self._at += 1
            if self._peek() not in 'bfnrt\\/"u':
                raise self._refuse("in string escape code")
            is_unicode = self._peek() == "u"
            self._at += 1
            for _ in range(4 if is_unicode else 0):
                if self._peek() not in _HEX_DIGITS:
                    raise self._refuse("in \\u hexadecimal character escape")
                self._at += 1

    def _literal(self, word: str) -> None:
        for expected in word:
            if self._peek() != expected:
                raise self._refuse(f"in literal {word} (expecting '{expected}')")
            self._at += 1

    def _number(self) -> None:
        if self._peek() == "-":
            self._at += 1
            if self._peek() not in "0123456789":
                raise self._refuse("in numeric literal")
        if self._peek() == "0":
            self._at += 1
        else:
            self._digits("in numeric literal")
        if self._text[self._at : self._at + 1] == ".":
            self._at += 1
            self._digits("after decimal point in numeric literal")
        if self._text[self._at : self._at + 1] in ("e", "E"):
            self._at += 1
            if self._peek() in "+-":
                self._at += 1
            self._digits("in exponent of numeric literal")

    def _digits(self, context: str) -> None:
        run = _DIGITS.match(self._text, self._at)
        assert run is not None  # the pattern matches the empty string
        if run.end() == self._at:
            self._peek()
            raise self._refuse(context)
        self._at = run.end()
