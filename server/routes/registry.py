"""`/api/pull` and `/api/push`: models from and to registries."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.context import ServerContext, context_of, read_request
from server.creating.jobs import Json, only_last
from server.registry.address import registry_url
from server.registry.pull import PULLED, pull
from server.registry.push import push
from server.store.names import InvalidNameError, ModelName
from server.store.short_names import full_name
from server.wire.errors import ApiError
from server.wire.go_decode import GoModel
from server.wire.openapi import takes
from server.wire.streaming import ReplyResponse

router = APIRouter()


class TransferRequest(GoModel):
    """Which model; `name` is what the field was called once.

    `username` and `password` are read, as Ollama reads them, and used as little.
    """

    model: str = ""
    name: str = ""
    insecure: bool = False
    username: str = ""
    password: str = ""
    stream: bool = True


class PullRequest(TransferRequest):
    go_name: ClassVar[str] = "PullRequest"


class PushRequest(TransferRequest):
    go_name: ClassVar[str] = "PushRequest"


@router.post("/api/pull", openapi_extra=takes(PullRequest))
async def pull_model(request: Request) -> Response:
    asked = await read_request(request, PullRequest)
    text = asked.model or asked.name
    name = full_name(_parse(text))
    url = registry_url(text, name, is_insecure=asked.insecure)
    return _reply(_pulled(context_of(request), name, url), asked)


@router.post("/api/push", openapi_extra=takes(PushRequest))
async def push_model(request: Request) -> Response:
    asked = await read_request(request, PushRequest)
    text = asked.model or asked.name
    if not text:
        raise ApiError(400, "model is required")
    name = _parse(text)
    url = registry_url(text, name, is_insecure=asked.insecure)
    return _reply(push(context_of(request).registry, name, url, text), asked)


async def _pulled(context: ServerContext, name: ModelName, url: str) -> AsyncGenerator[Json]:
    """The pull; a version that was in memory before leaves it."""
    async with aclosing(pull(context.registry, name, url)) as steps:
        async for step in steps:
            if step == PULLED:
                await context.let_go_of(name)
            yield step


def _parse(text: str) -> ModelName:
    if not text:
        raise InvalidNameError(text)
    return ModelName.parse(text)


def _reply(objects: AsyncGenerator[Json], asked: TransferRequest) -> Response:
    return ReplyResponse(objects if asked.stream else only_last(objects), stream=asked.stream)
