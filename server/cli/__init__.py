"""The `anser` command."""

from __future__ import annotations

from server.cli.entry import main

__all__ = ["main"]
