"""A parsed template: what other modules use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.go_template.errors import TemplateError
from server.go_template.evaluator import Execution
from server.go_template.functions import FUNCTIONS
from server.go_template.limits import MAX_TEMPLATE_CHARS, Budget, Limits
from server.go_template.nodes import Body
from server.go_template.parser import parse_tree


@dataclass(frozen=True)
class Template:
    """Safe to share between threads. `definitions` are those of `{{define}}` and `{{block}}`."""

    text: str
    root: Body
    definitions: Mapping[str, Body]

    def render(self, data: Mapping[str, Any], limits: Limits | None = None) -> str:
        """The text that the template makes of `data`: plain values, `Record`s for Go's structs.

        Raises TemplateError, in Go's words and with the place, for what cannot be evaluated, and
        when a limit is reached.
        """
        execution = Execution(self.text, self.definitions, Budget(limits or Limits()))
        return execution.run(self.root, data)


def parse(text: str) -> Template:
    """Raises TemplateError, with the line, for what is no template."""
    if len(text) > MAX_TEMPLATE_CHARS:
        raise TemplateError(f"template has more than {MAX_TEMPLATE_CHARS} characters")
    root, definitions = parse_tree(text, FUNCTIONS)
    return Template(text, root, definitions)
