"""Errors in the shape of the API that a request's path belongs to."""

from __future__ import annotations

from server.anthropic.errors import anthropic_error
from server.openai.errors import openai_error
from server.wire.answers import Json


def error_json(path: str, status: int, message: str) -> Json:
    """The body of an answer that says what went wrong."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic_error(status, message)
    if path.startswith("/v1/"):
        return openai_error(status, message)
    return {"error": message}
