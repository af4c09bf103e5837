"""Values as Go's encoding/json writes them: keys sorted, no spaces, `<`, `>` and `&` escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from server.go_template.values import INVALID, Record, ValueDepthError, is_list, sorted_items

_MAX_DEPTH = 100
_HTML = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def json_text(value: Any) -> str:
    """Raises ValueDepthError for values too deep inside each other."""
    parts: list[str] = []
    _write(value, parts, 0)
    return "".join(parts)


def _write(value: Any, parts: list[str], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueDepthError
    if isinstance(value, Record):
        _write_object(value.json_value, parts, depth)
    elif isinstance(value, Mapping):
        _write_object(dict(sorted_items(value)), parts, depth)
    elif is_list(value):
        parts.append("[")
        for i, item in enumerate(value):
            parts.append("," if i else "")
            _write(item, parts, depth + 1)
        parts.append("]")
    else:
        parts.append(_scalar(value))


def _write_object(value: Mapping[str, Any], parts: list[str], depth: int) -> None:
    """In the order of the keys as they are."""
    parts.append("{")
    for i, (key, item) in enumerate(value.items()):
        parts.append(f"{',' if i else ''}{_string(key)}:")
        _write(item, parts, depth + 1)
    parts.append("}")


def _scalar(value: Any) -> str:
    if value is None or value is INVALID:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value)
    return str(int(value)) if isinstance(value, int) else _string(str(value))


def _string(text: str) -> str:
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False).translate(_HTML)


def _number(value: float) -> str:
    """The shortest digits that read back equal; an exponent below 1e-6 and from 1e21 on."""
    if not math.isfinite(value):
        return "null"
    if value and not 1e-6 <= abs(value) < 1e21:
        mantissa, _, exponent = repr(value).partition("e")
        return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}"
    text = f"{Decimal(repr(value)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
