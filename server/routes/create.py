"""`/api/create` and `/api/blobs`: models made of stored models, or of files that clients send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.context import ServerContext, context_of, read_request
from server.creating.create_request import check_request, create_from_request, missing_source
from server.creating.jobs import Json, only_last, run_job
from server.registry.address import registry_url
from server.registry.pull import PULLED, pull
from server.store.manifests import DamagedModelError
from server.store.names import ModelName
from server.store.store import DigestMismatchError
from server.store.uploads import Upload, check_room
from server.wire.errors import CLIENT_CLOSED_REQUEST, ApiError
from server.wire.go_text import go_quote
from server.wire.manage_schemas import CreateRequest
from server.wire.openapi import takes, uploads
from server.wire.streaming import ReplyResponse

router = APIRouter()

# Pieces of the network's size would cost a change of threads each.
_WRITE_BYTES = 1 << 20


@router.post("/api/create", openapi_extra=takes(CreateRequest))
async def create(request: Request) -> Response:
    asked = await read_request(request, CreateRequest)
    name = check_request(asked)
    statuses = _create(context_of(request), name, asked)
    return ReplyResponse(statuses if asked.stream else only_last(statuses), stream=asked.stream)


async def _create(
    context: ServerContext, name: ModelName, asked: CreateRequest
) -> AsyncGenerator[Json]:
    async with aclosing(_pull_source(context, asked)) as steps:
        async for step in steps:
            yield step
    work = partial(create_from_request, context.store, name, asked)
    async with context.creating, aclosing(run_job(work)) as statuses:
        async for status in statuses:
            yield status
    await context.let_go_of(name)
    yield {"status": "success"}


async def _pull_source(context: ServerContext, asked: CreateRequest) -> AsyncGenerator[Json]:
    """What a pull says of the model that `from` names; nothing where it is stored."""
    source = await asyncio.to_thread(missing_source, context.store, asked)
    if source is None:
        return
    url = registry_url(asked.source, source, is_insecure=False)
    async with aclosing(pull(context.registry, source, url)) as steps:
        async for step in steps:
            if step != PULLED:  # clients would take it for the end of the create
                yield step


@router.head("/api/blobs/{digest}")
async def has_blob(request: Request, digest: str) -> Response:
    if not await _has_blob(context_of(request), digest):
        raise ApiError(404, f"blob {go_quote(digest)} not found")
    return Response()


@router.post("/api/blobs/{digest}", openapi_extra=uploads())
async def create_blob(request: Request, digest: str) -> Response:
    """The request's body is the blob, of any size that fits on the disk."""
    context = context_of(request)
    if await _has_blob(context, digest):
        return Response()
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit():
        await asyncio.to_thread(check_room, context.store, int(length))
    upload = await asyncio.to_thread(Upload, context.store)
    try:
        await _receive(request, upload)
        staged = await asyncio.to_thread(upload.finish)
        await asyncio.to_thread(partial(context.store.place, staged, expected_digest=digest))
    except ClientDisconnect:
        raise ApiError(CLIENT_CLOSED_REQUEST, "request canceled") from None
    except DigestMismatchError as error:
        raise ApiError(400, str(error)) from error
    finally:
        upload.discard()
    return Response(status_code=201)


async def _has_blob(context: ServerContext, digest: str) -> bool:
    try:
        return await asyncio.to_thread(context.store.has_blob, digest)
    except DamagedModelError as error:
        raise ApiError(400, str(error)) from error


async def _receive(request: Request, upload: Upload) -> None:
    pieces, size = [], 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size >= _WRITE_BYTES:
            await asyncio.to_thread(upload.write, b"".join(pieces))
            pieces, size = [], 0
    await asyncio.to_thread(upload.write, b"".join(pieces))
