"""`/api/copy` and `/api/delete`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.context import context_of, read_request
from server.store.model_changes import copy_model, delete_model
from server.wire.manage_schemas import CopyRequest, DeleteRequest
from server.wire.openapi import takes

router = APIRouter()


@router.post("/api/copy", openapi_extra=takes(CopyRequest))
async def copy(request: Request) -> Response:
    asked = await read_request(request, CopyRequest)
    context = context_of(request)
    name = await asyncio.to_thread(copy_model, context.store, asked.source, asked.destination)
    await context.let_go_of(name)
    return Response()


@router.delete("/api/delete", openapi_extra=takes(DeleteRequest))
async def delete(request: Request) -> Response:
    """Replies that the model is giving go on to their ends; then it leaves memory."""
    asked = await read_request(request, DeleteRequest)
    context = context_of(request)
    name = await asyncio.to_thread(delete_model, context.store, asked.model or asked.name)
    await context.let_go_of(name)
    return Response()
