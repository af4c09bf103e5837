"""Requests to one registry: tokens, redirects, errors in words."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from server.access.loopback import is_loopback
from server.registry.auth import Challenge, read_token, sign_request
from server.registry.errors import (
    LyingError,
    MissingError,
    RegistryError,
    TemporaryError,
    UnauthorizedError,
)
from server.registry.limits import Limits
from server.version import OLLAMA_VERSION

_R = TypeVar("_R")

# Hugging Face chooses by it which kind of manifest it sends.
USER_AGENT = f"ollama/{OLLAMA_VERSION} (compatible; anser)"

_MAX_REDIRECTS = 10
_MAX_TOKEN_BYTES = 1 << 20
_MAX_ERROR_BYTES = 4096
_MAX_ERROR_CHARS = 200
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429)
# A number that users would have to look up stands before the words that say it.
_NUMBERED = re.compile(r"^\[Errno -?\d+\] ")

# Writes a body anew for each attempt.
Body = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True)
class _Ask:
    """One request, as often as it must be sent."""

    method: str
    headers: Mapping[str, str]
    body: Body | None
    is_anonymous: bool
    timeout_s: float | None


class RegistryClient:
    """Speaks to the registry at `url` with one token, for requests that run at the same time."""

    def __init__(self, http: httpx.AsyncClient, url: str, key_file: Path) -> None:
        self._http = http
        self.url = httpx.URL(url)
        self._key_file = key_file
        self._token = ""
        self._token_lock = asyncio.Lock()

    @property
    def host(self) -> str:
        return self.url.netloc.decode()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        body: Body | None = None,
        is_anonymous: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The answer to a request, its body unread; `url` may be a path of the registry.

        An answer that wants a token is asked again with one. Redirects of GET and HEAD are
        followed; the token goes to the registry only. `timeout_s` is for an answer that takes
        longer than others. Raises MissingError for a 404, UnauthorizedError for a 401 or 403,
        TemporaryError for a connection that cannot be made, for a broken or stalled one, and for a
        registry that is busy, RegistryError for other refusals.
        """
        target = self._join(self.url, str(url)).copy_merge_params(params or {})
        ask = _Ask(method, headers or {}, body, is_anonymous, timeout_s)
        with translated(target):
            response = await self._answer(ask, target)
            try:
                await _check(response)
                yield response
            finally:
                await response.aclose()

    def resolve(self, response: httpx.Response, location: str) -> httpx.URL:
        """Where an answer sends us; from the internet never to this machine, nor out of TLS."""
        target = self._join(response.url, location)
        if target.scheme != "https" and self.url.scheme == "https":
            raise RegistryError(f"{self.host} redirects to {target.host} without TLS")
        if is_loopback(target.host) and not is_loopback(self.url.host):
            raise RegistryError(f"{self.host} redirects to this machine")
        return target

    async def _answer(self, ask: _Ask, url: httpx.URL) -> httpx.Response:
        token = self._token
        response = await self._follow(ask, url)
        if response.status_code != 401 or ask.is_anonymous or not self._is_own(response.url):
            return response
        challenge = Challenge.parse(response.headers.get("www-authenticate", ""))
        if challenge is None:
            return response
        await response.aclose()
        async with self._token_lock:
            if self._token == token:  # nobody else has got a new one meanwhile
                self._token = await self._request_token(challenge)
        return await self._follow(ask, url)

    async def _request_token(self, challenge: Challenge) -> str:
        url = challenge.token_url(self.url)
        headers = await asyncio.to_thread(sign_request, url, self._key_file)
        async with self.stream("GET", url, headers=headers, is_anonymous=True) as response:
            return read_token(await read_json(response, _MAX_TOKEN_BYTES))

    async def _follow(self, ask: _Ask, url: httpx.URL) -> httpx.Response:
        for _ in range(_MAX_REDIRECTS):
            response = await self._http.send(
                self._request(ask, url), stream=True, follow_redirects=False
            )
            if ask.method not in ("GET", "HEAD") or response.status_code not in _REDIRECTS:
                return response
            await response.aclose()
            url = self.resolve(response, response.headers.get("location", ""))
        raise RegistryError(f"{self.host} redirects more than {_MAX_REDIRECTS} times")

    def _request(self, ask: _Ask, url: httpx.URL) -> httpx.Request:
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"} | dict(ask.headers)
        if not self._is_own(url):
            headers.pop("Authorization", None)
        elif self._token and not ask.is_anonymous:
            headers["Authorization"] = f"Bearer {self._token}"
        request = self._http.build_request(
            ask.method, url, headers=headers, content=ask.body() if ask.body else None
        )
        if ask.timeout_s is not None:
            request.extensions["timeout"] = {**request.extensions["timeout"], "read": ask.timeout_s}
        return request

    def _join(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            target = url.join(location)
        except httpx.InvalidURL as error:
            raise RegistryError(f"{self.host} sends an address that is none ({error})") from error
        if target.scheme not in ("http", "https") or not target.host:
            raise RegistryError(f"{self.host} sends an address that is none ({target.scheme}:)")
        return target

    def _is_own(self, url: httpx.URL) -> bool:
        return url.scheme == self.url.scheme and url.netloc == self.url.netloc


def new_http(limits: Limits, *, is_local: bool) -> httpx.AsyncClient:
    """Connections to registries; a proxy of the environment is never for this machine."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(limits.stall_s, pool=None), trust_env=not is_local
    )


@contextmanager
def translated(url: httpx.URL) -> Iterator[None]:
    """Turns the HTTP library's errors into ours."""
    host = url.netloc.decode()
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        problem = f"cannot reach {host} ({_reason(error)}); check its name and the network"
        raise TemporaryError(problem) from error
    except httpx.TimeoutException as error:
        raise TemporaryError(f"{host} has stopped sending") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise TemporaryError(f"the connection to {host} broke ({_reason(error)})") from error


async def read_limited(response: httpx.Response, max_bytes: int) -> bytes:
    """The body of an answer. Raises RegistryError when it is longer than `max_bytes`."""
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > max_bytes:
            host = response.url.netloc.decode()
            raise RegistryError(f"{host} sends more than {max_bytes} bytes where few are due")
    return bytes(data)


async def read_json(response: httpx.Response, max_bytes: int) -> object:
    data = await read_limited(response, max_bytes)
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{response.url.netloc.decode()} sends what is no JSON") from error
    return value


async def persistently(work: Callable[[], Awaitable[_R]], limits: Limits, attempts: int) -> _R:
    """What `work` returns; it gets `attempts` attempts at what a TemporaryError ends."""
    for number in range(attempts - 1):
        try:
            return await work()
        except TemporaryError:
            await asyncio.sleep(wait_s(limits, number))
    return await work()


def wait_s(limits: Limits, number: int) -> float:
    """How long to wait after so many attempts, by chance not the same for all who wait."""
    return limits.first_wait_s * float(2**number) * random.uniform(0.5, 1.0)


async def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status < 400:
        return
    if status == 404:
        raise MissingError("file does not exist")
    words = f"{response.url.netloc.decode()} answers {status}: {await _words(response)}"
    if status in (401, 403):
        raise UnauthorizedError(f"unauthorized: access denied ({words})")
    if status >= 500 or status in _BUSY:
        raise TemporaryError(words)
    if status == 416:  # what the manifest promises is beyond the end of the blob
        raise LyingError(words)
    raise RegistryError(words)


async def _words(response: httpx.Response) -> str:
    """What the registry says about its refusal, in one line."""
    data = b""
    async for piece in response.aiter_raw():
        data += piece
        if len(data) >= _MAX_ERROR_BYTES:
            break
    text = data[:_MAX_ERROR_BYTES].decode(errors="replace")
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        text = json.loads(text)["errors"][0]["message"]
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).strip()
    return line[:_MAX_ERROR_CHARS] or response.reason_phrase


def _reason(error: Exception) -> str:
    text = _NUMBERED.sub("", str(error)).strip()
    return text or type(error).__name__
