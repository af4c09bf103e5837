"""Go's printf: what each verb makes of a value, and what it writes for a wrong argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.go_template.errors import ExecutionError
from server.go_template.format_reader import FormatReader, Placeholder, Spec
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


def formatted(form: str, values: Sequence[Any], charge: Callable[[int], None]) -> str:
    """Raises ExecutionError for a format that is not supported, ValueDepthError, and what `charge`
    raises: it is told the length of what is made of a value that may be written again and again.
    """
    reader = FormatReader(form, values)
    parts: list[str] = []
    for part in reader:
        if isinstance(part, Placeholder):
            text = _write(part.spec, part.value)
            if reader.is_reordered:
                charge(len(text))
            parts.append(text)
        else:
            parts.append(part)
    if reader.unused:
        extra = ", ".join(_typed(each) for each in reader.unused)
        parts.append(f"%!(EXTRA {extra})")
    return "".join(parts)


def _write(spec: Spec, value: Any) -> str:
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


def _write_item(spec: Spec, value: Any) -> str:
    """One of the items of a list or a mapping."""
    return "<nil>" if is_nil(value) else _write(spec, value)


def _bad_verb(spec: Spec, value: Any) -> str:
    if is_nil(value):
        return f"%!{spec.verb}(<nil>)"
    plain = Spec(spec.flags.replace("#", ""), spec.width, spec.precision, "v")
    return f"%!{spec.verb}({type_name(value)}={_write_plain(plain, value)})"


def _write_plain(spec: Spec, value: Any) -> str:
    if "#" in spec.flags:
        raise ExecutionError("printf does not support %#v here")
    if isinstance(value, str):
        return _write_text(spec, value) or ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return spec.pad(plain_text(value))
    text = _integer(spec, value) if isinstance(value, int) else _float(spec, value)
    return text or ""


def _scalar(spec: Spec, value: Any) -> str | None:
    """None for a verb that does not suit the value."""
    if isinstance(value, str):
        return _write_text(spec, value)
    if isinstance(value, bool):
        return spec.pad(plain_text(value)) if spec.verb == "t" else None
    if isinstance(value, int):
        return _integer(spec, value)
    return _float(spec, value) if isinstance(value, float) else None


def _write_text(spec: Spec, value: str) -> str | None:
    text = value if spec.precision < 0 else value[: spec.precision]
    if spec.verb in "vs":
        return spec.pad(text)
    if spec.verb == "q":
        is_raw = "#" in spec.flags and "`" not in text and text.replace("\t", "").isprintable()
        return spec.pad(f"`{text}`" if is_raw else go_quote(text, only_ascii="+" in spec.flags))
    if spec.verb in "xX":
        data = encode(value) if spec.precision < 0 else encode(value)[: spec.precision]
        digits = data.hex(" ") if " " in spec.flags else data.hex()
        if "#" in spec.flags and digits:
            digits = "0x" + digits.replace(" ", " 0x")
        return spec.pad(digits.upper() if spec.verb == "X" else digits)
    return None


def _integer(spec: Spec, value: int) -> str | None:
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
        spec = Spec(spec.flags.replace("0", ""), spec.width, -1, spec.verb)
    return spec.pad(text, is_number=True)


def _character(spec: Spec, code: int) -> str:
    if spec.verb == "U":
        text = f"U+{code:04X}"
        return spec.pad(f"{text} '{chr(code)}'" if "#" in spec.flags else text)
    is_valid = 0 <= code <= 0x10FFFF and not 0xD800 <= code < 0xE000
    char = chr(code) if is_valid else "\ufffd"
    if spec.verb == "c":
        return spec.pad(char)
    escaped = go_quote(char, only_ascii="+" in spec.flags)[1:-1]
    quoted = {"'": "\\'", '"': '"'}.get(char, escaped)
    return spec.pad(f"'{quoted}'")


def _float(spec: Spec, value: float) -> str | None:
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
