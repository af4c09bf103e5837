"""Named sessions as requests use them: one turn at a time, kept when its reply is finished.

A turn that fails, or whose client leaves before the reply is finished, leaves the session as it
was. One that finished is on disk before its client reads so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rwkv_core.errors import EngineBusyError
from server.replies.generation import Piece, join
from server.replies.tool_calls import offered_tool
from server.sessions.history import continued, message_text
from server.sessions.store import (
    MAX_MESSAGES,
    MAX_SESSION_BYTES,
    Session,
    SessionStore,
    StoredMessage,
)
from server.sessions.threads import to_the_end
from server.sessions.uploads import Uploads
from server.store.manifests import ADAPTER_TYPE, MODEL_TYPE
from server.store.stored_model import StoredModel
from server.wire.errors import ApiError
from server.wire.go_decode import decode
from server.wire.schemas import ChatRequest, Message, Tool, ToolCall, ToolCallFunction

# Files that are read at once.
_MAX_IMPORTS = 2


def session_not_found(session_id: str) -> ApiError:
    return ApiError(404, f"session '{session_id}' not found")


def weights_of(model: StoredModel) -> str:
    """What the states of a model depend on, of what the store has of it."""
    layers = [*model.manifest.all(MODEL_TYPE), *model.manifest.all(ADAPTER_TYPE)]
    return " ".join(layer.digest for layer in layers)


def check_model(session: Session, model: StoredModel) -> None:
    """Raises ApiError (409) naming the model that the session belongs to, if it is not this one."""
    name = model.name.shortest
    if session.model != name:
        raise ApiError(409, f"session '{session.id}' belongs to model '{session.model}'")
    if session.weights != weights_of(model):
        raise ApiError(
            409,
            f"session '{session.id}' belongs to model '{name}' as it was before it was replaced; "
            "delete the session, or begin another",
        )


def check_size(session_id: str, bodies: Sequence[str], tools: str) -> None:
    """Raises ApiError (400) for a history that is longer than may be kept."""
    num_bytes = sum(len(body.encode()) for body in bodies) + len(tools.encode())
    if len(bodies) > MAX_MESSAGES or num_bytes > MAX_SESSION_BYTES:
        raise ApiError(
            400,
            f"session '{session_id}' would have more than {MAX_MESSAGES} messages or "
            f"{MAX_SESSION_BYTES >> 20} MB of text; go on in another one",
        )


def read_messages(bodies: Sequence[str]) -> list[Message]:
    """Raises ApiError (400) for what are no messages."""
    return [decode(Message, json.loads(body)) for body in bodies]


def read_tools(tools: str) -> list[Tool]:
    """Raises ApiError (400) for what are no tools."""
    return [decode(Tool, each) for each in json.loads(tools)]


def tools_text(tools: Sequence[Tool]) -> str:
    """Tools as they are stored."""
    offered = [offered_tool(tool) for tool in tools]
    return json.dumps(offered, ensure_ascii=False, separators=(",", ":"))


class Turn:
    """A request in a session, from what the session holds to what it is to hold."""

    def __init__(
        self,
        store: SessionStore,
        session_id: str,
        model: StoredModel,
        earlier: tuple[Session, list[StoredMessage]] | None,
    ) -> None:
        """Raises ApiError (409) for a session of another model."""
        self._store = store
        self._earlier: Session | None = None
        stored: list[StoredMessage] = []
        if earlier is not None:
            self._earlier, stored = earlier
            check_model(self._earlier, model)
        self._session = self._earlier or Session(session_id, model.name.shortest, weights_of(model))
        self._stored = stored
        self._messages: list[Message] = []

    @property
    def cache_scope(self) -> str:
        return self._session.cache_scope

    def whole(self, asked: ChatRequest) -> ChatRequest:
        """The request as a client that knows no sessions would send it.

        Raises ApiError (400) if the session would become too long.
        """
        history = read_messages([each.body for each in self._stored])
        self._messages = continued(history, asked.messages)
        tools = asked.tools
        if "tools" not in asked.model_fields_set:
            tools = read_tools(self._session.tools)
        self._session = replace(self._session, tools=tools_text(tools))
        bodies = [message_text(each) for each in self._messages]
        check_size(self._session.id, bodies, self._session.tools)
        return asked.model_copy(update={"messages": self._messages, "tools": tools})

    def keep(self, reply: Piece) -> None:
        """Stores the turn with its reply. Raises AnserError if that cannot be."""
        assert reply.final is not None
        messages = [*self._messages]
        last = messages[-1]
        content = reply.content
        if last.role.lower() == "assistant" and not last.tool_calls:
            content = messages.pop().content + content  # the reply has gone on inside it
        calls = [
            ToolCall(
                id=each.id,
                function=ToolCallFunction(
                    index=each.index, name=each.call.name, arguments=dict(each.call.arguments)
                ),
            )
            for each in reply.tool_calls
        ]
        messages.append(
            Message(role="assistant", content=content, thinking=reply.thinking, tool_calls=calls)
        )
        bodies = [message_text(each) for each in messages]
        num_common = 0
        while (
            num_common < min(len(bodies), len(self._stored))
            and bodies[num_common] == self._stored[num_common].body
        ):
            num_common += 1
        stats = reply.final.stats
        session = replace(
            self._session,
            head=self._stored[num_common - 1].head if num_common else None,
            num_tokens=stats.num_prompt_tokens + stats.num_generated_tokens,
        )
        self._store.save(session, bodies[num_common:], replacing=self._earlier)


async def kept(turn: Turn, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """The pieces of a reply; before the last one is out, the turn is stored."""
    collected: list[Piece] = []
    async with aclosing(pieces):
        async for piece in pieces:
            collected.append(piece)
            if piece.final:
                await to_the_end(turn.keep, join(collected))
            yield piece


@dataclass
class _Queue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_requests: int = 0  # with the one whose turn it is


class Sessions:
    """The sessions of a server. Used on the event loop; the store is used in threads."""

    def __init__(self, folder: Path | None, max_queue: int) -> None:
        """In `folder`, or in memory. `max_queue` requests may wait for others of their sessions."""
        self._folder = folder
        self._max_queue = max_queue
        self._opening = asyncio.Lock()
        self._store: SessionStore | None = None  # opened with the first session
        self._queues: dict[str, _Queue] = {}
        self.uploads = Uploads()
        # Each takes memory for a file.
        self.importing = asyncio.Semaphore(_MAX_IMPORTS)

    async def store(self) -> SessionStore:
        async with self._opening:
            if self._store is None:
                self._store = await to_the_end(SessionStore, self._folder)
            return self._store

    @asynccontextmanager
    async def turn(self, session_id: str, model: StoredModel) -> AsyncIterator[Turn]:
        """A turn of a session, or of a new one, when those that were asked for before are over.

        Raises ApiError (409) for a session of another model, EngineBusyError when too many wait.
        """
        async with self._alone(session_id):
            store = await self.store()
            earlier = await asyncio.to_thread(store.read, session_id)
            yield Turn(store, session_id, model, earlier)

    async def close(self) -> None:
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    @asynccontextmanager
    async def _alone(self, session_id: str) -> AsyncIterator[None]:
        num_waiting = sum(queue.num_requests - 1 for queue in self._queues.values())
        if session_id in self._queues and num_waiting >= self._max_queue:
            raise EngineBusyError(
                f"session '{session_id}' is busy; try again when its reply is there"
            )
        queue = self._queues.setdefault(session_id, _Queue())
        queue.num_requests += 1
        try:
            async with queue.lock:
                yield
        finally:
            queue.num_requests -= 1
            if not queue.num_requests:
                del self._queues[session_id]
