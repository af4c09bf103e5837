"""Where the server's log goes: standard error, one line each, quiet unless something happens."""

from __future__ import annotations

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_LOGGERS = ("server", "anser", "rwkv_core")


def configure_logging(*, is_debug: bool) -> None:
    """Sets up the loggers of Anser, and uvicorn's for its warnings; others stay as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    level = logging.DEBUG if is_debug else logging.INFO
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.handlers = [handler]
    uvicorn.setLevel(logging.DEBUG if is_debug else logging.WARNING)
    uvicorn.propagate = False
