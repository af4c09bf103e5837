"""The one place where the text of a TEMPLATE is checked before it is stored."""

from __future__ import annotations


def check_template(text: str) -> None:
    """Accepts every text: a template that cannot be used says so when it is."""
