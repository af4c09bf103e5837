"""The value of a setting from its text. Each reader raises ValueError saying what is wrong."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import NamedTuple

from rwkv_core.instruction_sets import INSTRUCTION_SETS
from server.settings.model import DEFAULT_HOST, DEFAULT_PORT
from server.wire.durations import DurationError, keep_alive_ns, parse_duration

_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_SCHEME_PORTS = {"http": 80, "https": 443}
# Origins without a "*" must begin with one of these, so that a bare host name is noticed.
_ORIGIN_SCHEMES = (
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
)
# What stands in a header without quoting: visible ASCII, no comma.
_KEY = re.compile(r"[!-+\--~]+")
_NO = ("", "0", "f", "false")
_YES = ("1", "t", "true")


class Address(NamedTuple):
    """Where the server listens and where its clients find it: fields of Settings."""

    host: str
    port: int
    scheme: str
    path: str


def read_address(value: str) -> Address:
    """host, host:port, :port, a bare IPv6 address or [::]:port, with or without http://."""
    scheme, found, rest = value.partition("://")
    address, _, path = (rest if found else value).partition("/")
    default_port = _SCHEME_PORTS.get(scheme, DEFAULT_PORT) if found else DEFAULT_PORT
    host, colon, port = _split_port(address)
    if ":" in host and not _is_ip(host):
        raise ValueError("write an IPv6 address as [address]:port")
    if port and not (re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
        raise ValueError("the port must be a number from 0 to 65535")
    return Address(
        host or ("0.0.0.0" if colon else DEFAULT_HOST),
        int(port) if port else default_port,
        scheme if found else "http",
        path.rstrip("/"),
    )


def _split_port(address: str) -> tuple[str, str, str]:
    """Host, colon and port; "" for what is not there."""
    if _is_ip(address.strip("[]")):
        return str(ipaddress.ip_address(address.strip("[]"))), "", ""
    host, colon, port = address.rpartition(":")
    return (host.strip("[]"), colon, port) if colon else (address.strip("[]"), "", "")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def read_folder(value: str) -> Path:
    return Path(value).expanduser()


def read_states(value: str) -> Path | None:
    return None if value.lower() == "off" else Path(value).expanduser()


def read_keep_alive(value: str) -> int:
    """Nanoseconds."""
    try:
        return keep_alive_ns(int(value) if re.fullmatch("[+-]?[0-9]{1,18}", value) else value)
    except DurationError:
        raise ValueError("write seconds (300), a duration (1h30m), or -1 for ever") from None


def read_seconds(value: str) -> float:
    """Seconds, more than none; at most a day, so that a slip of the pen is noticed."""
    try:
        is_number = re.fullmatch("[0-9]{1,6}", value)
        seconds = int(value) if is_number else parse_duration(value) / 10**9
    except DurationError:
        seconds = 0
    if not 0 < seconds <= 86400:
        raise ValueError("write seconds (30) or a duration (1m30s), at most 24h")
    return seconds


def read_origins(value: str) -> tuple[str, ...]:
    origins = tuple(each.strip() for each in value.split(",") if each.strip())
    for origin in origins:
        if origin.count("*") > 1:
            raise ValueError(f'"{origin}" has more than one "*"')
        if "*" not in origin and not origin.startswith(_ORIGIN_SCHEMES):
            raise ValueError(f'"{origin}" must begin with http:// or https://, or hold a "*"')
    return origins


def read_keys(value: str) -> tuple[str, ...]:
    keys = tuple(each.strip() for each in value.split(",") if each.strip())
    if any(not _KEY.fullmatch(key) for key in keys):
        raise ValueError("a key is of visible ASCII characters, without blanks; commas part keys")
    return keys


def read_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", value):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return value


def read_number(value: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError("must be a whole number, 0 or more")
    return int(value)


def read_number_or_auto(value: str) -> int | None:
    """0 leaves it to the server: None."""
    return (read_number(value) if value else 0) or None


def read_threads(value: str) -> str:
    if not (re.fullmatch("[0-9]{1,3}", value) and 1 <= int(value) <= 256):
        raise ValueError("must be a whole number from 1 to 256")
    return value


def read_isa(value: str) -> str:
    if value not in INSTRUCTION_SETS:
        raise ValueError(f"must be one of {', '.join(INSTRUCTION_SETS)}")
    return value


def read_size(value: str) -> int:
    """Bytes."""
    match = re.fullmatch("([0-9]{1,9})(KB|MB|GB)", value, re.IGNORECASE)
    if not match:
        raise ValueError("write a size as 500MB or 2GB")
    return int(match[1]) * _BYTES[match[2].upper()]


def read_yes(value: str) -> bool:
    if value.lower() in _NO + _YES:
        return value.lower() in _YES
    raise ValueError("must be 0 or 1")


def read_history(value: str) -> bool:
    """Whether a history is kept, from whether it is not."""
    return not read_yes(value)


def read_kernels(value: str) -> str:
    if value not in ("on", "off"):
        raise ValueError("must be on or off")
    return value


def read_debug(value: str) -> bool:
    if value == "2":  # Ollama's "trace"
        return True
    try:
        return read_yes(value)
    except ValueError:
        raise ValueError("must be 0, 1 or 2") from None
