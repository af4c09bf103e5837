"""Whether a text may become a model's TEMPLATE."""

from __future__ import annotations

from server.go_template import parse


def check_template(text: str) -> None:
    """Raises TemplateError, which names the line, for what is no Go template."""
    parse(text)
