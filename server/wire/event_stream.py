"""The reply to a request of another API than Ollama's: one JSON object, or server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Protocol

from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.replies.generation import Piece
from server.wire.answers import Json
from server.wire.errors import message_of, status_of
from server.wire.streaming import json_response, to_json, unless_gone

log = logging.getLogger(__name__)

_NEWLINE = "\n"

# A server that stops ends its generations, and each stream says so before it ends. One that has
# not by then is cut off.
_LAST_WORDS_S = 1.0


class ReplyWriter(Protocol):
    """Writes one reply in the shapes of one API. Of `whole` and `events` only one is used."""

    def whole(self, piece: Piece) -> Json:
        """The answer, from a piece that holds the whole reply."""

    def events(self, piece: Piece) -> Iterator[ServerSentEvent]:
        """What one piece adds to the stream; the last piece also ends it."""

    def failed(self, status: int, message: str) -> Iterator[ServerSentEvent]:
        """The end of a stream that an error has cut off."""

    def ping(self) -> ServerSentEvent:
        """What says in a long silence that the connection lives."""


def event(value: Json, name: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(to_json(value).decode(), event=name, sep=_NEWLINE)


def text_event(data: str) -> ServerSentEvent:
    return ServerSentEvent(data, sep=_NEWLINE)


def comment(text: str) -> ServerSentEvent:
    """What clients skip."""
    return ServerSentEvent(comment=text, sep=_NEWLINE)


async def answer(
    request: Request, pieces: AsyncGenerator[Piece], writer: ReplyWriter, *, stream: bool
) -> Response:
    """The response of a reply; without `stream`, its first piece is the whole.

    Waits for the first piece, so that an error before it is raised from here and gets a status of
    its own. A client that goes away cancels the generation: raises ApiError (499) then.
    """
    try:
        first = await unless_gone(request, _next(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    if stream:
        return _EventReply(first, pieces, writer)
    await pieces.aclose()
    return json_response(writer.whole(first))


async def _next(pieces: AsyncGenerator[Piece]) -> Piece:
    return await anext(pieces)


class _EventReply(EventSourceResponse):
    """Sends the events of a reply as its pieces come; closes `pieces` when its client goes away."""

    def __init__(self, first: Piece, pieces: AsyncGenerator[Piece], writer: ReplyWriter) -> None:
        self._pieces = pieces
        self._events = _events(first, pieces, writer)
        super().__init__(
            self._events,
            ping_message_factory=writer.ping,
            sep=_NEWLINE,
            shutdown_grace_period=_LAST_WORDS_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except OSError:
            log.debug("the connection broke; its generation is cancelled")
        finally:
            await self._events.aclose()
            await self._pieces.aclose()


async def _events(
    first: Piece, pieces: AsyncGenerator[Piece], writer: ReplyWriter
) -> AsyncGenerator[ServerSentEvent]:
    try:
        for each in writer.events(first):
            yield each
        async with aclosing(pieces):
            async for piece in pieces:
                for each in writer.events(piece):
                    yield each
    except Exception as error:  # the status is sent: the error ends the stream
        for each in writer.failed(status_of(error), message_of(error)):
            yield each
