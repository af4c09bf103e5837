"""The one place where the text of a TEMPLATE is checked before it is stored."""

from __future__ import annotations


def check_template(text: str) -> None:
    """Raises CreateError, as "template error: " and what is wrong, for a text that is no template.

    Every text is accepted so far: one that cannot be used says so when it is.
    """
