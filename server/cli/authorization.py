"""The key that the command line sends to a server that wants one."""

from __future__ import annotations

import os
from collections.abc import Mapping

from server.settings import Settings


def authorization() -> Mapping[str, str]:
    """The header with the first key of the settings, or the one that Ollama's clients send.

    Raises SettingsError.
    """
    keys = Settings.from_environment().api_keys or (os.environ.get("OLLAMA_API_KEY", "").strip(),)
    return {"Authorization": f"Bearer {keys[0]}"} if keys[0] else {}
