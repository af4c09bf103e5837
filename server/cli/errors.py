"""Errors of the command line; `main` prints them as one line and leaves with their exit code."""

from __future__ import annotations

from rwkv_core.errors import AnserError


class CommandError(AnserError):
    """A command that cannot do its work."""


class ServerError(CommandError):
    """An error in the server's words; `status` is 0 for one in the middle of a stream."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ConnectionLostError(CommandError):
    """A server that could not be reached, or that went away."""
