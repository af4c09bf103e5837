"""Whether the folders of a server can be written, said before anything is to be written there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from server.cli.errors import CommandError


def check_models_folder(folder: Path) -> None:
    """Makes the folder. Raises CommandError when models could not be written there."""
    problem = _problem(folder)
    if problem is not None:
        raise CommandError(
            f"{folder}: cannot keep models there ({problem}, or set OLLAMA_MODELS to another folder"
        )


def states_remark(folder: Path | None) -> str | None:
    """Makes the folder. A line for the log when states could not be written there: a server runs
    without, too.
    """
    problem = None if folder is None else _problem(folder, mode=0o700)
    if problem is None:
        return None
    return (
        f"{folder}: cannot keep the states of chats there ({problem}, or set ANSER_STATES to "
        "another folder, or to off; until then chats are read anew after a restart"
    )


def reason(error: Exception) -> str:
    """What the system says, without what Python adds."""
    return getattr(error, "strerror", None) or str(error)


def _problem(folder: Path, mode: int = 0o777) -> str | None:
    """Why nothing can be written there; then a parenthesis ends, and the remedy begins."""
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        remedy = "make it writable"
        if isinstance(error, PermissionError) and folder.is_dir() and hasattr(os, "geteuid"):
            # A volume of a container has another name on its host: the numbers are what counts.
            remedy = f"give it to this user: chown -R {os.geteuid()}:{os.getegid()} {folder}"
        return f"{reason(error)}); {remedy}"
