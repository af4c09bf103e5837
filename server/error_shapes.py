"""Errors in the shape of the API that a request's path belongs to."""

from __future__ import annotations

from server.wire import Json


def error_json(path: str, status: int, message: str) -> Json:
    """The body of an answer that says what went wrong; every path is Ollama's so far."""
    return {"error": message}
