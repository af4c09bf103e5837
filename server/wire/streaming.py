"""The one bridge from the engine's thread to the event loop, and the response of a reply."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rwkv_core.cache import TokenIds
from rwkv_core.engine import (
    EmbeddedEvent,
    EmbeddingRequest,
    Engine,
    Event,
    FailedEvent,
    FinishedEvent,
    FinishReason,
    GenerationRequest,
    TextEvent,
)
from rwkv_core.errors import EngineStoppedError, GenerationError
from server.wire.errors import CLIENT_CLOSED_REQUEST, ApiError, message_of, status_of

log = logging.getLogger(__name__)

_R = TypeVar("_R")

JSON_TYPE = b"application/json; charset=utf-8"
NDJSON_TYPE = b"application/x-ndjson"

# A client that leaves this much text unread (a long novel) has stopped reading. Its generation
# ends: memory has bounds, and an engine that waited for it would hold up everyone behind it.
_MAX_UNREAD_CHARS = 1 << 20


async def generate(
    engine: Engine, request: GenerationRequest, watch: Callable[[Event], None] | None = None
) -> AsyncGenerator[TextEvent | FinishedEvent]:
    """Runs one request on the engine and yields its events; the last one is a FinishedEvent.

    Closing the generator, by `aclose` or by cancelling the task that runs it, cancels the
    generation. Raises what the engine failed with. `watch` is called with every event on the
    engine's thread, in no time.
    """
    mailbox = _Mailbox(asyncio.get_running_loop())

    def deliver(event: Event) -> None:
        if watch is not None:
            watch(event)
        mailbox.put(event)

    generation = engine.submit(request, deliver)
    mailbox.on_overflow = generation.cancel
    try:
        while True:
            for event in await mailbox.take():
                if isinstance(event, FailedEvent):
                    raise event.error
                if isinstance(event, FinishedEvent) and event.reason is FinishReason.CANCELLED:
                    raise EngineStoppedError("the generation was stopped by the server")
                assert not isinstance(event, EmbeddedEvent)
                yield event
                if isinstance(event, FinishedEvent):
                    return
    finally:
        generation.cancel()
        mailbox.on_overflow = _nothing  # no cycle that would keep the model in memory


async def embed(engine: Engine, token_ids: TokenIds) -> EmbeddedEvent:
    """Has the engine read a text for its vector. To cancel the task that waits cancels the reading.

    Raises what the engine failed with.
    """
    loop = asyncio.get_running_loop()
    arrival: asyncio.Future[Event] = loop.create_future()

    def settle(event: Event) -> None:
        if not arrival.done():
            arrival.set_result(event)

    def deliver(event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, event)

    reading = engine.embed(EmbeddingRequest(token_ids), deliver)
    try:
        event = await arrival
    finally:
        reading.cancel()
    if isinstance(event, FailedEvent):
        raise event.error
    if not isinstance(event, EmbeddedEvent):
        raise EngineStoppedError("the reading was stopped by the server")
    return event


def _nothing() -> None:
    pass


class _Mailbox:
    """Filled by the engine's thread without ever blocking it, emptied by the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._num_chars = 0
        self._has_overflown = False
        self._arrival = asyncio.Event()
        self.on_overflow: Callable[[], None] = _nothing

    def put(self, event: Event) -> None:
        """Called on the engine's thread."""
        with self._lock:
            if self._has_overflown:
                return
            if isinstance(event, TextEvent):
                self._num_chars += len(event.text)
                self._has_overflown = self._num_chars > _MAX_UNREAD_CHARS
            if self._has_overflown:
                self._events.clear()
                event = FailedEvent(GenerationError("the client has stopped reading the reply"))
            self._events.append(event)
            is_first = len(self._events) == 1
        if self._has_overflown:
            self.on_overflow()
        if is_first:
            try:
                self._loop.call_soon_threadsafe(self._arrival.set)
            except RuntimeError:
                # The loop is closed: the server is gone, and with it everyone who would read this.
                return

    async def take(self) -> list[Event]:
        """All that has arrived; waits for the first."""
        await self._arrival.wait()
        with self._lock:
            self._arrival.clear()
            events = list(self._events)
            self._events.clear()
            self._num_chars = 0
        return events


# Many readers of lines end one at these too, JSON or not.
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def to_json(value: Any) -> bytes:
    """On one line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char, escape in _LINE_ENDS.items():
        text = text.replace(char, escape)
    return text.encode("utf-8", "replace")


def json_response(value: Mapping[str, Any], status: int = 200) -> Response:
    return Response(to_json(value), status, headers={"content-type": JSON_TYPE.decode()})


class ReplyResponse(Response):
    """Sends objects as they come, one JSON line each; with `stream` off, the only one as JSON.

    The status is decided when the first object is there: an error before it has its own status,
    one after it ends the stream with an `{"error": …}` line. A client that goes away closes
    `objects` at once.
    """

    def __init__(self, objects: AsyncGenerator[Mapping[str, Any]], *, stream: bool) -> None:
        super().__init__()
        self._objects = objects
        self._is_stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send(send))
        watcher = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_gone = not sender.done()
            sender.cancel()
            watcher.cancel()
            results = await asyncio.gather(sender, watcher, return_exceptions=True)
            await self._objects.aclose()
        if has_gone:
            log.debug("the client has gone; its generation is cancelled")
        for result in results:
            # OSError: the connection broke under a write, which is one way for a client to go.
            if isinstance(result, Exception) and not isinstance(result, OSError):
                raise result

    async def _send(self, send: Send) -> None:
        try:
            first = await anext(self._objects)
        except Exception as error:  # whatever it is, the client gets an answer
            await _start(send, status_of(error), JSON_TYPE)
            await _end(send, to_json({"error": message_of(error)}))
            return
        if not self._is_stream:
            await _start(send, 200, JSON_TYPE)
            await _end(send, to_json(first))
            return
        await _start(send, 200, NDJSON_TYPE)
        await _write_line(send, first)
        try:
            async for value in self._objects:
                await _write_line(send, value)
        except OSError:
            raise
        except Exception as error:  # the status is sent: the error is the last line
            await _write_line(send, {"error": message_of(error)})
        await _end(send, b"")


async def unless_gone(request: Request, work: Coroutine[Any, Any, _R]) -> _R:
    """What `work` returns. It is cancelled when the client goes away; raises ApiError (499) then.

    The request has no body, or one that has been read.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return await worker
        raise ApiError(CLIENT_CLOSED_REQUEST, "request canceled")
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, content_type: bytes) -> None:
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _write_line(send: Send, value: Mapping[str, Any]) -> None:
    body = to_json(value) + b"\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _end(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})
