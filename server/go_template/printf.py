"""Go's printf: verbs, flags, width and precision, and what it writes for a wrong argument."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.go_template.errors import ExecutionError
from server.go_template.printing import plain_text
from server.go_template.values import (
    Record,
    encode,
    is_list,
    is_nil,
    prints_json,
    sorted_items,
    type_name,
)
from server.wire.go_text import go_float, go_quote

# Flags, width, precision. No format is read twice.
_SPEC = re.compile(r"([-+# 0]*)([0-9]*)(?:(\.)([0-9]*))?")
# Go's own bound of a width or a precision.
_MAX_WIDTH = 1_000_000


@dataclass(frozen=True)
class _Spec:
    """One verb with all that stands before it; -1 for a width or precision not given."""

    flags: str
    width: int
    precision: int
    verb: str

    def pad(self, text: str, *, is_number: bool = False) -> str:
        missing = self.width - len(text)
        if missing <= 0:
            return text
        if "-" in self.flags:
            return text + " " * missing
        if "0" not in self.flags:
            return " " * missing + text
        sign = text[:1] if is_number and text[:1] in ("+", "-", " ") else ""
        return sign + "0" * missing + text[len(sign) :]

    def signed(self, text: str) -> str:
        if text.startswith("-"):
            return text
        return ("+" if "+" in self.flags else " " if " " in self.flags else "") + text


def padded_length(form: str) -> int:
    """How long a format may make one value, so that a caller can refuse before it is made."""
    widths = (int(digits[:8]) for digits in re.findall(r"[0-9]+", form))
    return len(form) + sum(width for width in widths if width <= _MAX_WIDTH)


def num_leaves(value: Any) -> int:
    """How many values there are inside of one, each of which is written by itself."""
    count, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        count += 1
        if isinstance(each, Mapping):
            waiting += each.values()
        elif is_list(each):
            waiting += each
    return count


def formatted(form: str, values: Sequence[Any]) -> str:
    """Raises ExecutionError for a format that is not supported, and ValueDepthError."""
    parts: list[str] = []
    at = num_used = 0
    while (percent := form.find("%", at)) >= 0:
        parts.append(form[at:percent])
        found = _SPEC.match(form, percent + 1)
        assert found is not None  # the pattern matches nothing as well
        verb, at = form[found.end() : found.end() + 1], found.end() + 1
        spec, problem = _read_spec(found, verb)
        parts.append(problem)
        if not verb:
            parts.append("%!(NOVERB)")
        elif verb in "*[":
            raise ExecutionError(f"printf does not support %{verb} here")
        elif verb == "%":
            parts.append("%")
        elif num_used >= len(values):
            parts.append(f"%!{verb}(MISSING)")
        else:
            parts.append(_write(spec, values[num_used]))
            num_used += 1
    parts.append(form[at:])
    if num_used < len(values):
        extra = ", ".join(_typed(each) for each in values[num_used:])
        parts.append(f"%!(EXTRA {extra})")
    return "".join(parts)


def _read_spec(found: re.Match[str], verb: str) -> tuple[_Spec, str]:
    """The verb's spec, and what Go writes for a width or precision that is too large."""
    flags, width, point, precision = found.groups()
    num_width = int(width[:8]) if width else -1
    num_precision = int(precision[:8] or 0) if point else -1
    problem = ""
    if num_width > _MAX_WIDTH:
        problem, num_width = "%!(BADWIDTH)", -1
    if num_precision > _MAX_WIDTH:
        problem, num_precision = f"{problem}%!(BADPREC)", -1
    if "-" in flags:
        flags = flags.replace("0", "")
    return _Spec(flags, num_width, num_precision, verb), problem


def _write(spec: _Spec, value: Any) -> str:
    if spec.verb == "T":
        return spec.pad(type_name(value))
    if prints_json(value) and spec.verb in "vsqxX":
        value = plain_text(value)
    if is_list(value):
        return "[" + " ".join(_write_item(spec, item) for item in value) + "]"
    if isinstance(value, Record):
        return "{" + " ".join(_write_item(spec, item) for item in value.values()) + "}"
    if isinstance(value, Mapping):
        pairs = (f"{_write(spec, k)}:{_write_item(spec, v)}" for k, v in sorted_items(value))
        return f"map[{' '.join(pairs)}]"
    if spec.verb == "v":
        return _write_plain(spec, value)
    text = _scalar(spec, value)
    return _bad_verb(spec, value) if text is None else text


def _write_item(spec: _Spec, value: Any) -> str:
    """One of the items of a list or a mapping."""
    return "<nil>" if is_nil(value) else _write(spec, value)


def _bad_verb(spec: _Spec, value: Any) -> str:
    if is_nil(value):
        return f"%!{spec.verb}(<nil>)"
    plain = _Spec(spec.flags.replace("#", ""), spec.width, spec.precision, "v")
    return f"%!{spec.verb}({type_name(value)}={_write_plain(plain, value)})"


def _write_plain(spec: _Spec, value: Any) -> str:
    if "#" in spec.flags:
        raise ExecutionError("printf does not support %#v here")
    if isinstance(value, str):
        return _write_text(spec, value) or ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return spec.pad(plain_text(value))
    text = _integer(spec, value) if isinstance(value, int) else _float(spec, value)
    return text or ""


def _scalar(spec: _Spec, value: Any) -> str | None:
    """None for a verb that does not suit the value."""
    if isinstance(value, str):
        return _write_text(spec, value)
    if isinstance(value, bool):
        return spec.pad(plain_text(value)) if spec.verb == "t" else None
    if isinstance(value, int):
        return _integer(spec, value)
    return _float(spec, value) if isinstance(value, float) else None


def _write_text(spec: _Spec, value: str) -> str | None:
    text = value if spec.precision < 0 else value[: spec.precision]
    if spec.verb in "vs":
        return spec.pad(text)
    if spec.verb == "q":
        is_raw = "#" in spec.flags and "`" not in text and text.replace("\t", "").isprintable()
        return spec.pad(f"`{text}`" if is_raw else go_quote(text))
    if spec.verb in "xX":
        data = encode(value) if spec.precision < 0 else encode(value)[: spec.precision]
        digits = data.hex(" ") if " " in spec.flags else data.hex()
        if "#" in spec.flags and digits:
            digits = "0x" + digits.replace(" ", " 0x")
        return spec.pad(digits.upper() if spec.verb == "X" else digits)
    return None


def _integer(spec: _Spec, value: int) -> str | None:
    if spec.verb in "cqU":
        return _character(spec, int(value))
    base = {"d": "d", "v": "d", "b": "b", "o": "o", "O": "o", "x": "x", "X": "X"}.get(spec.verb)
    if base is None:
        return None
    digits = format(abs(int(value)), base)
    if spec.precision >= 0:
        digits = "" if spec.precision == 0 and not value else digits.rjust(spec.precision, "0")
    prefix = {"b": "0b", "o": "0", "O": "0o", "x": "0x", "X": "0X"}.get(spec.verb, "")
    if "#" in spec.flags or spec.verb == "O":
        digits = prefix + digits
    text = spec.signed(f"-{digits}" if value < 0 else digits)
    if spec.precision >= 0:  # a precision says how many zeros there are
        spec = _Spec(spec.flags.replace("0", ""), spec.width, -1, spec.verb)
    return spec.pad(text, is_number=True)


def _character(spec: _Spec, code: int) -> str:
    if spec.verb == "U":
        text = f"U+{code:04X}"
        return spec.pad(f"{text} '{chr(code)}'" if "#" in spec.flags else text)
    is_valid = 0 <= code <= 0x10FFFF and not 0xD800 <= code < 0xE000
    char = chr(code) if is_valid else "\ufffd"
    if spec.verb == "c":
        return spec.pad(char)
    quoted = {"'": "\\'", '"': '"'}.get(char, go_quote(char)[1:-1])
    return spec.pad(f"'{quoted}'")


def _float(spec: _Spec, value: float) -> str | None:
    if spec.verb in "vgG" and spec.precision < 0:
        text = go_float(value)
    elif spec.verb in "fFeEgG" or spec.verb == "v":
        kind = "g" if spec.verb == "v" else spec.verb
        digits = 6 if spec.precision < 0 else spec.precision
        text = format(value, f".{digits}{kind}")
    else:
        return None
    text = text.upper() if spec.verb in "EG" else text
    return spec.pad(spec.signed(text), is_number=True)


def _typed(value: Any) -> str:
    return "<nil>" if is_nil(value) else f"{type_name(value)}={plain_text(value)}"
