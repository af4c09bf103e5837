"""Literals of Go: quoted strings, characters, numbers."""

from __future__ import annotations

import math
import re

_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3}))"
)
_SIMPLE = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34}
_MAX_INT = 2**63 - 1
_DECIMAL_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(
    r"(?:0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+|[0-9](?:_?[0-9])*)"
)


class LiteralError(Exception):
    """A literal that Go would not take, in Go's words."""


def unquote(quoted: str) -> str:
    """The text of a string in double quotes or backquotes. Raises LiteralError."""
    if quoted.startswith("`"):
        return quoted[1:-1].replace("\r", "")
    return _unescape(quoted[1:-1], "'")


def parse_char(quoted: str) -> int:
    """The code point of a character constant. Raises LiteralError."""
    try:
        char = _unescape(quoted[1:-1], '"')
    except LiteralError:
        char = ""
    if len(char) != 1:
        raise LiteralError(f"malformed character constant: {quoted}")
    return ord(char)


def parse_number(text: str) -> int | float | None:
    """An int, or a float where the text has a point or an exponent; None if it is too large for
    an int. Raises LiteralError.
    """
    if text.endswith("i"):
        raise LiteralError("complex numbers are not supported")
    is_hex = text.lstrip("+-")[:2] in ("0x", "0X")
    digits = text.lower()
    if "p" in digits or (not is_hex and set(digits) & set(".e")):
        return _parse_float(text, is_hex=is_hex)
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if not _INTEGER.fullmatch(unsigned):
        raise LiteralError(f'bad number syntax: "{text}"')
    if len(unsigned) > 100:
        raise LiteralError(f'integer overflow: "{text}"')
    if unsigned[0] == "0" and unsigned[1:2].isdigit():
        unsigned = f"0o{unsigned[1:]}"
    try:
        value = int(unsigned, 0)
    except ValueError:
        raise LiteralError(f'bad number syntax: "{text}"') from None
    value = -value if text.startswith("-") else value
    if not -(2**64) < value < 2**64:
        raise LiteralError(f'integer overflow: "{text}"')
    return value if -_MAX_INT - 1 <= value <= _MAX_INT else None


def _parse_float(text: str, *, is_hex: bool) -> float:
    try:
        if is_hex:
            return float.fromhex(text.replace("_", ""))
        if not _DECIMAL_FLOAT.fullmatch(text):
            raise ValueError
        value = float(text)
    except (ValueError, OverflowError):
        raise LiteralError(f'bad number syntax: "{text}"') from None
    if math.isinf(value):
        raise LiteralError(f'bad number syntax: "{text}"')
    return value


def _unescape(text: str, forbidden: str) -> str:
    """`text` with its escapes resolved. Go's escapes make bytes, of which several may be one
    character. `forbidden` is the quote that may not be escaped.
    """
    if "\\" not in text:
        return text
    parts: list[bytes] = []
    at = 0
    while at < len(text):
        next_escape = text.find("\\", at)
        end = next_escape if next_escape >= 0 else len(text)
        parts.append(text[at:end].encode("utf-8", "surrogatepass"))
        at = end
        if at < len(text):
            found = _ESCAPE.match(text, at)
            if not found or found[1] == forbidden:
                raise LiteralError("invalid syntax")
            parts.append(_escaped(found))
            at = found.end()
    return b"".join(parts).decode("utf-8", "replace")


def _escaped(found: re.Match[str]) -> bytes:
    simple, byte, short, long, octal = found.groups()
    if simple:
        return bytes([_SIMPLE[simple]])
    if byte or octal:
        value = int(byte, 16) if byte else int(octal, 8)
        if value > 0xFF:
            raise LiteralError("invalid syntax")
        return bytes([value])
    code = int(short or long, 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise LiteralError("invalid syntax")
    return chr(code).encode()
