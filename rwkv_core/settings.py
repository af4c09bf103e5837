"""Where Anser's configuration files are."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """The folder `configs/`: `$ANSER_CONFIGS` if set, else the copy inside the wheel, else the
    checkout's.
    """
    override = os.environ.get("ANSER_CONFIGS")
    if override:
        return Path(override).expanduser()
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"
