"""Files of this machine that a Modelfile names."""

from __future__ import annotations

from pathlib import Path


def local_path(source: str, folder: Path) -> Path | None:
    """The file or folder that a line names, relative to `folder`; None when there is none."""
    try:
        path = folder / Path(source).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, no home, a null character
        return None
