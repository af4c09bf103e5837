"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from server.wire.answers import Json

_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def openai_error(status: int, message: str) -> Json:
    kind = _TYPES.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
