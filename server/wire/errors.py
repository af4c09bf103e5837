"""Errors on the wire: every one is `{"error": "text"}` with a status, mapped here once."""

from __future__ import annotations

import logging

from rwkv_core.errors import AnserError, EngineBusyError, EngineStoppedError, OptionError
from server.go_template.errors import TemplateError
from server.sessions.store import (
    SessionChangedError,
    SessionExistsError,
    SessionRangeError,
    SessionsFullError,
)
from server.store.names import InvalidNameError

log = logging.getLogger(__name__)

# An answer to a client that has gone, as nginx and Ollama number it; only the log ever shows it.
CLIENT_CLOSED_REQUEST = 499

TOO_DEEP = "invalid character '[' exceeded max depth"


class ApiError(AnserError):
    """A request that is answered with `status` and `{"error": message}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def model_not_found(name: str) -> ApiError:
    return ApiError(404, f"model '{name}' not found")


def body_too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413, f"request body too large: at most {max_bytes} bytes (ANSER_MAX_REQUEST_SIZE)"
    )


def status_of(error: BaseException) -> int:
    """The HTTP status that `error` is answered with while nothing has been sent."""
    if isinstance(error, ApiError):
        return error.status
    mistakes = (OptionError, InvalidNameError, SessionRangeError, TemplateError, RecursionError)
    if isinstance(error, mistakes):
        return 400
    if isinstance(error, SessionChangedError | SessionExistsError):
        return 409
    if isinstance(error, SessionsFullError):
        return 507
    if isinstance(error, EngineBusyError | EngineStoppedError):
        return 503
    return 500


def message_of(error: BaseException) -> str:
    """The one line that the client reads.

    What is no error of ours is logged, and named without its details.
    """
    if isinstance(error, AnserError):
        return str(error)
    if isinstance(error, RecursionError):  # only what a client sends is nested so deeply
        return TOO_DEEP
    log.error("unexpected error", exc_info=error)
    return f"internal error: {type(error).__name__}; see the server's log"
