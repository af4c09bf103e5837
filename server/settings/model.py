"""What a running server is set to. Where each value comes from is the business of `sources`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rwkv_core.errors import AnserError
from server.access.loopback import is_loopback

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11434

_LOCAL_ORIGINS = ("localhost", "127.0.0.1", "0.0.0.0")
_APP_ORIGINS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")


class SettingsError(AnserError):
    """A flag, a variable or a line of the file that cannot be used."""


def default_models_folder() -> Path:
    return Path.home() / ".anser" / "models"


@dataclass(frozen=True)
class Settings:
    """How the server runs. `keep_alive_ns` is for requests that name no keep_alive themselves.

    `states` is where the states of chats are kept, None for in memory only; how much memory and
    disk they take depends on what is free where the number of bytes is None. `num_parallel` None:
    as many requests at once as memory allows, for each model; `max_loaded_models` None: as many
    models as Ollama would have in memory. Without `api_keys` everyone who reaches the server may
    call. `engine_variables` are for the environment, where the engine itself looks for them.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    scheme: str = "http"  # of `url`; the server itself speaks plain HTTP
    path: str = ""  # of `url`, for a server behind a proxy
    models: Path = field(default_factory=default_models_folder)
    keep_alive_ns: int = 300 * 10**9
    origins: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_request_size: int = 16 * 10**6  # bytes
    request_timeout_s: float = 30.0
    device: str = "auto"
    num_parallel: int | None = None
    max_queue: int = 512
    max_loaded_models: int | None = None
    states: Path | None = None
    states_memory: int | None = None
    states_disk: int | None = None
    no_prune: bool = False  # keep blobs that no manifest names
    keeps_history: bool = True  # of what is typed in a chat
    editor: str = ""  # a command
    is_debug: bool = False
    engine_variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings of `environment` (default: the process's) and of the file that it names.

        Raises SettingsError in one line.
        """
        # Imported here: the table of settings needs this class.
        from server.settings.sources import read_settings  # noqa: PLC0415

        return read_settings(environment=environment).settings

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The user's origins and those that are always allowed; "*" stands for anything."""
        local = [
            f"{scheme}://{host}{port}"
            for host in _LOCAL_ORIGINS
            for scheme in ("http", "https")
            for port in ("", ":*")
        ]
        return (*self.origins, *local, *_APP_ORIGINS)

    @property
    def listens_on_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where a client finds the server; an address that means "any" is reached as loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{self.port}" + (f"/{self.path}" if self.path else "")
