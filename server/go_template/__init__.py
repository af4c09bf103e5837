"""Go's text/template, as Ollama's models use it: parsed once, rendered from plain values.

Templates come from strangers, so a template can reach nothing but the values it is given and a
fixed table of functions, and every rendering is bounded in steps, output, depth and time.
"""

from server.go_template.errors import TemplateError
from server.go_template.limits import Limits
from server.go_template.template import Template, parse
from server.go_template.values import JsonList, JsonMap, OneOrMore, Record

__all__ = [
    "JsonList",
    "JsonMap",
    "Limits",
    "OneOrMore",
    "Record",
    "Template",
    "TemplateError",
    "parse",
]
