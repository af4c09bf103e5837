"""The application: settings in, an ASGI app out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rwkv_core.chat.prompt_format import load_prompt_formats
from rwkv_core.errors import AnserError
from server.access.api_keys import ApiKeyCheck
from server.access.middleware import CrossOrigin, HostCheck, RequestLog
from server.access.request_limits import BodyLimit
from server.context import ServerContext
from server.loading.model_manager import ModelManager
from server.metrics import RequestCounter
from server.registry.partial_file import remove_stale_partials
from server.registry.registry import Registry
from server.routes import (
    anthropic,
    chat,
    create,
    embed,
    generate,
    manage,
    metrics,
    models,
    openai,
    registry,
    root,
    sessions,
    ui,
)
from server.sessions.turns import Sessions
from server.settings import Settings
from server.store.demo_model import ensure_demo_model
from server.store.pruning import remove_forgotten_blobs
from server.store.store import Store, StoreError
from server.wire.error_shapes import error_json
from server.wire.errors import message_of, status_of
from server.wire.streaming import json_response

log = logging.getLogger(__name__)

_ROUTES = (
    root,
    models,
    create,
    manage,
    registry,
    generate,
    chat,
    embed,
    openai,
    anthropic,
    sessions,
    metrics,
    ui,
)

# What Ollama's router says where it has no route.
_ROUTER_WORDS = {404: "404 page not found", 405: "405 method not allowed"}


def create_app(settings: Settings) -> FastAPI:
    """The server as an ASGI application. Raises OptionError when a file of `configs/` is wrong.

    Its start-up puts the demo model into the store; its shutdown stops every generation.
    """
    load_prompt_formats()  # a mistake in them is better said now than in the middle of a chat
    store = Store(settings.models)
    manager = ModelManager(settings)
    named_sessions = Sessions(settings.states, settings.max_queue)
    transfers = Registry(store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_tidy, store, settings)
        await asyncio.to_thread(ensure_demo_model, store)
        try:
            yield
        finally:
            await transfers.close()
            await manager.close()
            await named_sessions.close()

    app = FastAPI(title="Anser", lifespan=lifespan, openapi_url=None)
    app.state.context = ServerContext(settings, store, manager, named_sessions, transfers)
    for module in _ROUTES:
        app.include_router(module.router)
    app.add_exception_handler(AnserError, _answer_error)
    app.add_exception_handler(RecursionError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_no_route)
    app.add_exception_handler(Exception, _answer_error)
    # The last one added is the first one a request meets.
    if settings.api_keys:
        app.add_middleware(ApiKeyCheck, keys=settings.api_keys)
    app.add_middleware(
        BodyLimit, max_bytes=settings.max_request_size, timeout_s=settings.request_timeout_s
    )
    if settings.listens_on_loopback:
        app.add_middleware(HostCheck)
    app.add_middleware(CrossOrigin, origins=settings.allowed_origins)
    app.add_middleware(RequestLog)
    app.add_middleware(RequestCounter, metrics=manager.metrics)
    return app


def _tidy(store: Store, settings: Settings) -> None:
    """What nobody needs goes, before anyone asks for anything."""
    store.remove_leftovers()
    remove_stale_partials(store)
    if not settings.no_prune:
        try:
            remove_forgotten_blobs(store)
        except (StoreError, OSError) as error:
            log.warning("unused blobs are not deleted: %s", error)


async def _answer_error(request: Request, error: Exception) -> Response:
    status = status_of(error)
    return json_response(error_json(request.url.path, status, message_of(error)), status)


async def _answer_no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = _ROUTER_WORDS.get(error.status_code, str(error.detail))
    body = error_json(request.url.path, error.status_code, words)
    response = json_response(body, error.status_code)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
