"""`/api/generate`: a reply to one prompt."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.context import ServerContext, context_of, read_request
from server.replies.options import Options
from server.replies.replies import (
    check_generate_request,
    generate_options,
    generate_reply,
    prompt_after_context,
)
from server.sessions.ids import SESSION_HEADER
from server.store.stored_model import StoredModel
from server.wire.answers import Json, generate_debug, generate_done, generate_json
from server.wire.errors import ApiError
from server.wire.openapi import takes
from server.wire.schemas import GenerateRequest
from server.wire.streaming import ReplyResponse, json_response

router = APIRouter()


@router.post("/api/generate", openapi_extra=takes(GenerateRequest))
async def generate(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, GenerateRequest)
    context = context_of(request)
    check_generate_request(asked)
    if asked.session or request.headers.get(SESSION_HEADER):
        raise ApiError(
            400,
            "/api/generate has no sessions; use /api/chat, or send the context of the last answer",
        )
    model = await context.find_model(asked.model)
    if not asked.prompt and asked.keep_alive == 0:
        context.manager.unload(model)
        return json_response(generate_done(asked.model, "unload"))
    options = generate_options(model, asked)
    is_stream = asked.stream and bool(asked.prompt) and not asked.debug_render_only
    return ReplyResponse(_answers(context, model, asked, options, start_ns), stream=is_stream)


async def _answers(
    context: ServerContext,
    model: StoredModel,
    asked: GenerateRequest,
    options: Options,
    start_ns: int,
) -> AsyncGenerator[Json]:
    if not asked.prompt or asked.debug_render_only:
        async with context.manager.use(model, asked.keep_alive) as loaded:
            if not asked.prompt:
                yield generate_done(asked.model, "load")
                return
            earlier, prompt = await prompt_after_context(loaded, model, asked)
            yield generate_debug(asked.model, earlier + prompt.text)
        return
    async with aclosing(generate_reply(context, model, asked, options, start_ns)) as pieces:
        async for piece in pieces:
            yield generate_json(asked.model, piece)
