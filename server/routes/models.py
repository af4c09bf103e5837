"""`/api/tags`, `/api/show`, `/api/ps`: which models there are, what they are, which are loaded."""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.context import context_of, read_request
from server.store.show import show_json
from server.store.stored_model import list_models
from server.wire.answers import listed_model, running_model
from server.wire.errors import ApiError
from server.wire.openapi import takes
from server.wire.schemas import ShowRequest
from server.wire.streaming import json_response

router = APIRouter()

_COPILOT = "GitHubCopilotChat/"


@router.api_route("/api/tags", methods=["GET", "HEAD"])
async def tags(request: Request) -> Response:
    models = await asyncio.to_thread(list_models, context_of(request).store)
    return json_response({"models": [listed_model(model) for model in models]})


@router.post("/api/show", openapi_extra=takes(ShowRequest))
async def show(request: Request) -> Response:
    asked = await read_request(request, ShowRequest)
    name = asked.model or asked.name
    if not name:
        raise ApiError(400, "model is required")
    model = await context_of(request).find_model(name)
    describe = partial(
        show_json, model, verbose=asked.verbose, system=asked.system, options=asked.options
    )
    answer = await asyncio.to_thread(describe)
    if request.headers.get("user-agent", "").startswith(_COPILOT):
        # It shows users this key; they know the name that they asked for.
        answer["model_info"]["general.basename"] = name
    return json_response(answer)


@router.get("/api/ps")
async def running(request: Request) -> Response:
    loaded = context_of(request).manager.loaded()
    return json_response({"models": [running_model(each) for each in loaded]})
