"""The server's settings: flags, the environment and a file, read once into one dataclass."""

from __future__ import annotations

from server.settings.model import Settings, SettingsError

__all__ = ["Settings", "SettingsError"]
