"""The process that renders Jinja templates: one JSON request a line in, one answer a line out.

A template comes with a model file, from anywhere. Jinja's sandbox keeps it from Python's objects,
but an expression such as `10 ** 10 ** 10`, or two nested lists compared, may take for ever inside
one step of the interpreter, where nothing can be counted. So it runs in a process of its own, of
bounded memory, which the server ends when it takes too long.

The file is run by its path and imports nothing of the server: it must start fast and stay small.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Refused(Exception):
    """The template itself says that it cannot render this conversation."""


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(str(message))


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """As Hugging Face does it: without the escapes that HTML would need."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()


@lru_cache(maxsize=8)
def _compiled(text: str) -> Template:
    return _ENVIRONMENT.from_string(text)


def _render(request: dict[str, Any]) -> str:
    most: int = request["max_chars"]
    parts: list[str] = []
    for part in _compiled(request["template"]).generate(request["values"]):
        most -= len(part)
        if most < 0:
            raise _Refused(f"it writes more than {request['max_chars']} characters")
        parts.append(part)
    return "".join(parts)


def answer(request: dict[str, Any]) -> dict[str, str]:  # noqa: PLR0911 - one for each outcome
    """{"text"}, or {"error"} with what went wrong."""
    try:
        return {"text": _render(request)}
    except _Refused as error:
        return {"error": str(error)}
    except TemplateSyntaxError as error:
        remedy = "a TEMPLATE in a Modelfile would replace it"
        return {"error": f"line {error.lineno}: {error.message}; {remedy}"}
    except TemplateError as error:
        return {"error": error.message or type(error).__name__}
    except RecursionError:
        return {"error": "it is nested too deep"}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # a template can raise what any expression of Python can
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _limit_memory(num_bytes: int) -> None:
    """Where the system can: it has no `resource` on Windows, and macOS ignores the limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def _requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin.buffer:
        yield json.loads(line)


def main() -> None:
    _limit_memory(int(sys.argv[1]))
    for request in _requests():
        line = json.dumps(answer(request))
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
