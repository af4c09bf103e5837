"""Who may call: the check of the Host header, cross-origin rules, and the log of requests."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import time
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.sessions.ids import SESSION_HEADER
from server.wire.errors import CLIENT_CLOSED_REQUEST

log = logging.getLogger("anser.requests")

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_PRIVATE_NETWORKS = [
    ipaddress.ip_network(each)
    for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
]
_EXTENSION_SCHEMES = (
    "chrome-extension",
    "safari-extension",
    "moz-extension",
    "ms-browser-extension",
)
_ALLOWED_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_ALLOWED_HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "OpenAI-Beta"]
    + [SESSION_HEADER, "X-Api-Key", "Anthropic-Version", "Anthropic-Beta"]
    + [
        f"X-Stainless-{name}"  # what OpenAI's client libraries send
        for name in (
            "Arch", "Async", "Custom-Poll-Interval", "Helper-Method", "Lang", "OS",
            "Package-Version", "Poll-Helper", "Retry-Count", "Runtime", "Runtime-Version",
            "Timeout",
        )
    ]
)  # fmt: skip
_PREFLIGHT_LIFE_S = 12 * 3600


class HostCheck:
    """Refuses requests whose Host header is none of this machine's names.

    A page that points its own name at 127.0.0.1 must not reach a server that listens only there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = _without_port(Headers(scope=scope).get("host", ""))
        if _is_own_address(host):
            await self._app(scope, receive, send)
        elif not is_own_name(host):
            await Response(status_code=HTTPStatus.FORBIDDEN)(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await Response(status_code=HTTPStatus.NO_CONTENT)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class CrossOrigin:
    """Answers pages of other origins as far as the origin is allowed."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._allows_all = "*" in origins
        patterns = "|".join(re.escape(each.lower()).replace(r"\*", ".*") for each in origins)
        extensions = "|".join(_EXTENSION_SCHEMES)
        self._allowed = re.compile(f"{patterns}|(?:{extensions})://.*", re.DOTALL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin, host = headers.get("origin", ""), headers.get("host", "")
        if not origin or origin in (f"http://{host}", f"https://{host}"):
            await self._app(scope, receive, send)
        elif not self._allows_all and not self._allowed.fullmatch(origin.lower()):
            await Response(status_code=HTTPStatus.FORBIDDEN)(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            response = Response(status_code=HTTPStatus.NO_CONTENT, headers=self._preflight(origin))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, self._with_origin(origin, send))

    def _preflight(self, origin: str) -> dict[str, str]:
        return {
            "Access-Control-Allow-Methods": _ALLOWED_METHODS,
            "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
            "Access-Control-Max-Age": str(_PREFLIGHT_LIFE_S),
            "Access-Control-Allow-Origin": "*" if self._allows_all else origin,
        } | ({} if self._allows_all else {"Vary": "Origin"})

    def _with_origin(self, origin: str, send: Send) -> Send:
        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Access-Control-Allow-Origin"] = "*" if self._allows_all else origin
                if not self._allows_all:
                    headers.add_vary_header("Origin")
            await send(message)

        return send_with_origin


class RequestLog:
    """One line for each request: status, time, client, method and path.

    Clients look for news by GET all the time, so those that went well are for debugging only.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        status = CLIENT_CLOSED_REQUEST  # stands if no answer is ever begun

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            client = scope["client"][0] if scope.get("client") else "-"
            path = scope["path"].encode("unicode_escape").decode()  # one line, whatever it holds
            seconds = time.monotonic() - start
            is_news = status >= HTTPStatus.BAD_REQUEST or scope["method"] not in ("GET", "HEAD")
            log.log(
                logging.INFO if is_news else logging.DEBUG,
                '%d | %9.3fs | %15s | %-7s "%s"',
                status, seconds, client, scope["method"], path,
            )  # fmt: skip


def is_own_name(host: str) -> bool:
    """Whether a Host header's name is one that only this machine can have."""
    host = host.lower()
    return (
        host in ("", "localhost")
        or host == socket.gethostname().lower()
        or host.endswith(_LOCAL_SUFFIXES)
    )


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.startswith("[")):
        host = name
    return host.removeprefix("[").removesuffix("]")


def _is_own_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    is_private = any(
        address in network for network in _PRIVATE_NETWORKS if network.version == address.version
    )
    return is_private or _is_bindable(address)


def _is_bindable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an interface of this machine has the address: only then a socket binds to it."""
    if address.is_multicast:
        return False
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
