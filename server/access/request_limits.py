"""How large a request's body may be, how slowly it may come, and how much of bodies is held."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.wire.error_shapes import error_json
from server.wire.errors import ApiError, body_too_large
from server.wire.streaming import json_response

# Routes that write what they receive to disk and have limits of their own.
_UPLOADS = re.compile("/api/blobs/[^/]*|/api/sessions/[^/]*/state")
# A body has its time to begin, and a second more for so many bytes of it.
_MIN_RATE = 1000
# How much of the bodies that are still on their way may be held, as a multiple of the largest one.
# The first bytes of each do not count: many slow senders must not keep out who sends little.
_LARGEST_TOGETHER = 4
_FREE_BYTES = 64_000
# Less than this is read to its end, so that the connection can be used again.
_SMALL_REST = 64_000
# For who is still sending when the answer is already no: a connection that closed at once would
# take the answer with it.
_LINGER_S = 1.0


@dataclass
class _Held:
    """Bytes of bodies that are not complete, for all requests together."""

    num_bytes: int = 0


class BodyLimit:
    """Refuses bodies of more than `max_bytes` (413) before they are read, and slow ones (408).

    `timeout_s` is how long nothing at all may come.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._held = _Held()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = _UPLOADS.fullmatch(scope["path"]) is not None
        body = _Body(
            Headers(scope=scope),
            receive,
            None if is_upload else self._max_bytes,
            self._timeout_s,
            self._held,
        )
        answer = _Answer(body, send)
        try:
            if body.is_too_large:
                error = body.too_large()
                words = error_json(scope["path"], error.status, str(error))
                await json_response(words, error.status)(scope, receive, answer.send)
            else:
                await self._app(scope, body.receive, answer.send)
        finally:
            body.release()


class _Body:
    """The body of one request, on its way. `max_bytes` None: whoever reads it limits it."""

    def __init__(
        self,
        headers: Headers,
        receive: Receive,
        max_bytes: int | None,
        timeout_s: float,
        held: _Held,
    ) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._held = held
        self._num_held = 0
        self._num_bytes = 0
        self._waited_s = 0.0
        self._is_refused = False
        length = headers.get("content-length", "")
        self._length = int(length) if length.isdecimal() else None
        self.is_complete = self._length is None and "transfer-encoding" not in headers

    @property
    def is_too_large(self) -> bool:
        most = self._max_bytes
        return most is not None and max(self._length or 0, self._num_bytes) > most

    @property
    def ends_connection(self) -> bool:
        """Whether more may still come than is worth reading for the next request's sake."""
        if self.is_complete:
            return False
        return (
            self._is_refused or self._length is None or self._length - self._num_bytes > _SMALL_REST
        )

    def too_large(self) -> ApiError:
        assert self._max_bytes is not None  # or nothing is too large
        return body_too_large(self._max_bytes)

    async def receive(self) -> Message:
        """The next piece. Raises ApiError (413, 408, 503), and then no more is taken."""
        if self.is_complete:
            return await self._receive()
        try:
            return await self._receive_more()
        except ApiError:
            self._is_refused = True
            self.is_complete = False
            raise

    async def _receive_more(self) -> Message:
        start = time.monotonic()
        patience = self._timeout_s + self._num_bytes / _MIN_RATE - self._waited_s
        try:
            message = await asyncio.wait_for(self._receive(), patience)
        except asyncio.TimeoutError:
            raise ApiError(
                HTTPStatus.REQUEST_TIMEOUT, "the request's body came too slowly"
            ) from None
        self._waited_s += time.monotonic() - start
        self._num_bytes += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        if self.is_too_large:
            raise self.too_large()
        self._hold()
        return message

    async def drain(self) -> None:
        """Takes what still comes, for a short time, and forgets it."""

        async def to_the_end() -> None:
            while (await self._receive()).get("more_body", False):
                pass

        try:
            await asyncio.wait_for(to_the_end(), _LINGER_S)
        except asyncio.TimeoutError:
            return

    def release(self) -> None:
        self._held.num_bytes -= self._num_held
        self._num_held = 0

    def _hold(self) -> None:
        """Counts what has come of an incomplete body. Raises ApiError (503) for too much."""
        self.release()
        if self._max_bytes is None or self.is_complete:
            return
        self._num_held = max(self._num_bytes - _FREE_BYTES, 0)
        self._held.num_bytes += self._num_held
        if self._num_held and self._held.num_bytes > _LARGEST_TOGETHER * self._max_bytes:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "server busy, please try again.  too many large requests arrive at once",
            )


class _Answer:
    """The way back: an answer before the end of a long body ends the connection, too."""

    def __init__(self, body: _Body, send: Send) -> None:
        self._body = body
        self._send = send
        self._ends_connection = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._body.ends_connection:
            self._ends_connection = True
            MutableHeaders(scope=message)["Connection"] = "close"
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and self._ends_connection:
            await self._send({**message, "more_body": True})
            await self._body.drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)
