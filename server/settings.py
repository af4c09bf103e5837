"""What the environment says about the server: Ollama's variables, read once into one dataclass."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rwkv_core.errors import AnserError
from server.durations import DurationError, keep_alive_ns

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11434
DEFAULT_KEEP_ALIVE_NS = 300 * 10**9
DEFAULT_MAX_QUEUE = 512

_BYTES = {"MB": 10**6, "GB": 10**9}
_SCHEME_PORTS = {"http": 80, "https": 443}
_LOCAL_ORIGINS = ("localhost", "127.0.0.1", "0.0.0.0")
_APP_ORIGINS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")
# Origins without a "*" must begin with one of these, so that a bare host name is noticed.
_ORIGIN_SCHEMES = (
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
)


class SettingsError(AnserError):
    """A variable of the environment that cannot be used."""


def default_models_folder() -> Path:
    return Path.home() / ".anser" / "models"


def default_states_folder() -> Path:
    return Path.home() / ".anser" / "states"


@dataclass(frozen=True)
class Settings:
    """How the server runs. `keep_alive_ns` is for requests that name no keep_alive themselves.

    `states` is where the states of chats are kept, None for in memory only; how much memory and
    disk they take depends on what is free where the number of bytes is None. `num_parallel` None:
    as many requests at once as memory allows, for each model; `max_loaded_models` None: as many
    models as Ollama would have in memory.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    scheme: str = "http"  # of `url`; the server itself speaks plain HTTP
    path: str = ""  # of `url`, for a server behind a proxy
    models: Path = field(default_factory=default_models_folder)
    keep_alive_ns: int = DEFAULT_KEEP_ALIVE_NS
    origins: tuple[str, ...] = ()
    device: str = "auto"
    num_parallel: int | None = None
    max_queue: int = DEFAULT_MAX_QUEUE
    max_loaded_models: int | None = None
    states: Path | None = None
    states_memory: int | None = None
    states_disk: int | None = None
    is_debug: bool = False
    prunes_blobs: bool = True  # at the start, those that no model has

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings of `environment` (default: the process's). Raises SettingsError in one line."""
        variables = _Variables(os.environ if environment is None else environment)
        address = variables.get("OLLAMA_HOST")
        host, port = _read_host(address)
        scheme, found, rest = address.partition("://")
        models = variables.get("OLLAMA_MODELS")
        return cls(
            host=host,
            port=port,
            scheme=scheme if found else "http",
            path=(rest if found else address).partition("/")[2].rstrip("/"),
            models=Path(models).expanduser() if models else default_models_folder(),
            keep_alive_ns=_read_keep_alive(variables.get("OLLAMA_KEEP_ALIVE")),
            origins=_read_origins(variables.get("OLLAMA_ORIGINS")),
            device=_read_device(variables.get("ANSER_DEVICE")),
            num_parallel=_read_number("OLLAMA_NUM_PARALLEL", variables) or None,
            max_queue=_read_number("OLLAMA_MAX_QUEUE", variables, DEFAULT_MAX_QUEUE),
            max_loaded_models=_read_number("OLLAMA_MAX_LOADED_MODELS", variables) or None,
            states=_read_states(variables.get("ANSER_STATES")),
            states_memory=_read_size("ANSER_STATES_MEMORY", variables),
            states_disk=_read_size("ANSER_STATES_DISK", variables),
            is_debug=_read_debug(variables.get("OLLAMA_DEBUG")),
            prunes_blobs=not _read_flag("OLLAMA_NOPRUNE", variables),
        )

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
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """Where a client finds the server; an address that means "any" is reached as loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{self.port}" + (f"/{self.path}" if self.path else "")


class _Variables:
    """The environment, with the quotes and blanks that people put around values taken off."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def get(self, name: str) -> str:
        return self._environment.get(name, "").strip().strip("\"'").strip()


def _read_host(value: str) -> tuple[str, int]:
    """host, host:port, :port, a bare IPv6 address or [::]:port, with or without http://."""
    scheme, found, rest = value.partition("://")
    address = (rest if found else value).partition("/")[0]
    default_port = _SCHEME_PORTS.get(scheme, DEFAULT_PORT) if found else DEFAULT_PORT
    try:
        return str(ipaddress.ip_address(address.strip("[]"))), default_port
    except ValueError:
        pass
    host, colon, port = address.rpartition(":")
    if not colon:
        host, port = address, ""
    host = host.strip("[]")
    if ":" in host and not _is_ip(host):
        raise SettingsError(f'OLLAMA_HOST="{value}": write an IPv6 address as [address]:port')
    if port and not (re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
        raise SettingsError(f'OLLAMA_HOST="{value}": the port must be a number from 0 to 65535')
    return host or ("0.0.0.0" if colon else DEFAULT_HOST), int(port) if port else default_port


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _read_keep_alive(value: str) -> int:
    if not value:
        return DEFAULT_KEEP_ALIVE_NS
    try:
        return keep_alive_ns(int(value) if re.fullmatch("[+-]?[0-9]{1,18}", value) else value)
    except DurationError:
        raise SettingsError(
            f'OLLAMA_KEEP_ALIVE="{value}": write seconds (300), a duration (1h30m), or -1 for ever'
        ) from None


def _read_origins(value: str) -> tuple[str, ...]:
    origins = tuple(each.strip() for each in value.split(",") if each.strip())
    for origin in origins:
        if origin.count("*") > 1:
            raise SettingsError(f'OLLAMA_ORIGINS: "{origin}" has more than one "*"')
        if "*" not in origin and not origin.startswith(_ORIGIN_SCHEMES):
            raise SettingsError(
                f'OLLAMA_ORIGINS: "{origin}" must begin with http:// or https://, or hold a "*"'
            )
    return origins


def _read_device(value: str) -> str:
    if not re.fullmatch(r"(auto|cpu|cuda(:[0-9]+)?)?", value):
        raise SettingsError(f'ANSER_DEVICE="{value}": must be auto, cpu, cuda or cuda:N')
    return value or "auto"


def _read_number(name: str, variables: _Variables, default: int = 0) -> int:
    value = variables.get(name)
    if not re.fullmatch("[0-9]{0,9}", value):
        raise SettingsError(f'{name}="{value}": must be a whole number, 0 or more')
    return int(value) if value else default


def _read_states(value: str) -> Path | None:
    if value.lower() == "off":
        return None
    return Path(value).expanduser() if value else default_states_folder()


def _read_size(name: str, variables: _Variables) -> int | None:
    value = variables.get(name)
    match = re.fullmatch("([0-9]{1,9})(MB|GB)", value, re.IGNORECASE)
    if value and not match:
        raise SettingsError(f'{name}="{value}": write a size as 500MB or 2GB')
    return int(match[1]) * _BYTES[match[2].upper()] if match else None


def _read_flag(name: str, variables: _Variables) -> bool:
    word = variables.get(name).lower()
    if word in ("", "0", "f", "false"):
        return False
    if word in ("1", "t", "true"):
        return True
    raise SettingsError(f'{name}="{word}": must be 0 or 1')


def _read_debug(value: str) -> bool:
    word = value.lower()
    if word in ("", "0", "f", "false"):
        return False
    if word in ("1", "2", "t", "true"):
        return True
    raise SettingsError(f'OLLAMA_DEBUG="{value}": must be 0, 1 or 2')
