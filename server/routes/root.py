"""`/`, `/api/version`, `/openapi.json`: whether a server is there, and what it can be asked."""

from __future__ import annotations

import asyncio
from functools import cache

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from server.version import OLLAMA_VERSION
from server.wire.answers import Json
from server.wire.openapi import openapi_page
from server.wire.streaming import json_response

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"])
async def root() -> Response:
    # Clients look for these very words.
    return PlainTextResponse("Ollama is running")


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return json_response(await asyncio.to_thread(_page, request.app))


@cache
def _page(app: FastAPI) -> Json:
    return openapi_page(app)


@router.api_route("/api/version", methods=["GET", "HEAD"])
async def version() -> Response:
    return json_response({"version": OLLAMA_VERSION})
