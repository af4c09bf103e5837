"""What every route works with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TypeVar, cast

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.loading.model_manager import ModelManager
from server.registry.registry import Registry
from server.sessions.turns import Sessions
from server.settings import Settings
from server.store.manifests import DamagedModelError
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import ForeignModelError, StoredModel, open_model
from server.wire.content_encoding import decompress, is_compressed
from server.wire.errors import CLIENT_CLOSED_REQUEST, ApiError, model_not_found
from server.wire.go_decode import GoModel, decode
from server.wire.go_json import parse_body

# Creates that run at once; more would only take the disk and the processors from each other.
_MAX_CREATING = 2
# Bytes that are parsed in a few milliseconds; more is done beside the event loop, one at a time.
_LARGE_BODY = 256_000

_Model = TypeVar("_Model", bound=GoModel)


@dataclass(frozen=True)
class ServerContext:
    """The parts of a running server. `large_bodies` is held by who parses one."""

    settings: Settings
    store: Store
    manager: ModelManager
    sessions: Sessions
    registry: Registry
    creating: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CREATING))
    large_bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def find_model(self, name: str) -> StoredModel:
        """The stored model that a client calls `name`.

        Raises InvalidNameError, ApiError 404 for a model that is not there, 400 for one that is no
        RWKV-7, and DamagedModelError.
        """
        parsed = ModelName.parse(name)
        try:
            model = await asyncio.to_thread(open_model, self.store, parsed)
        except ForeignModelError as error:
            raise ApiError(400, str(error)) from error
        if model is None:
            raise model_not_found(name)
        return model

    async def let_go_of(self, name: ModelName) -> None:
        """To be called when `name` was deleted or is another model now: what is in memory for it
        goes, when the replies that it is giving have ended.
        """
        try:
            current = await asyncio.to_thread(open_model, self.store, name)
        except (ForeignModelError, DamagedModelError):
            current = None
        self.manager.let_go_of(name, current)


def context_of(request: Request) -> ServerContext:
    return cast(ServerContext, request.app.state.context)


async def read_request(request: Request, kind: type[_Model]) -> _Model:
    """The body of a request. Raises ApiError (400) in the words of Ollama's parser, and what
    decompressing raises.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ApiError(CLIENT_CLOSED_REQUEST, "request canceled") from None
    is_packed = is_compressed(request.headers.get("content-encoding", ""))
    if len(body) <= _LARGE_BODY and not is_packed:
        return decode(kind, parse_body(body))
    context = context_of(request)

    def read() -> _Model:
        max_bytes = context.settings.max_request_size
        return decode(kind, parse_body(decompress(body, max_bytes) if is_packed else body))

    async with context.large_bodies:  # as lists, such a body may take twenty times its size
        return await asyncio.to_thread(read)
