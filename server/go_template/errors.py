"""What goes wrong in a template, in Go's words, which name the line."""

from __future__ import annotations

from rwkv_core.errors import AnserError


class TemplateError(AnserError):
    """A template that cannot be parsed, or that fails or goes on for too long when rendered."""


class ExecutionError(Exception):
    """Why evaluating a node fails; the evaluator adds where, and makes it a TemplateError."""
