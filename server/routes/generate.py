"""`/api/generate`: a reply to one prompt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response

from rwkv_core.tokenizer import Tokenizer
from server.context import ServerContext, context_of, read_request
from server.errors import ApiError, model_not_found
from server.generation import Timing, reply
from server.inference import (
    as_asked,
    check_able,
    check_implemented,
    check_thinking,
    check_top_logprobs,
)
from server.openapi import takes
from server.options import Options, read_options
from server.prompts import generate_prompt
from server.schemas import GenerateRequest
from server.sessions.ids import SESSION_HEADER
from server.stored_model import StoredModel
from server.streaming import ReplyResponse, json_response
from server.wire import Json, generate_debug, generate_done, generate_json

router = APIRouter()


@router.post("/api/generate", openapi_extra=takes(GenerateRequest))
async def generate(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, GenerateRequest)
    context = context_of(request)
    check_top_logprobs(asked)
    if not asked.model.strip():
        raise model_not_found(asked.model)
    if asked.session or request.headers.get(SESSION_HEADER):
        raise ApiError(
            400,
            "/api/generate has no sessions; use /api/chat, or send the context of the last answer",
        )
    model = await context.find_model(asked.model)
    if not asked.prompt and asked.keep_alive == 0:
        context.manager.unload(model)
        return json_response(generate_done(asked.model, "unload"))
    if asked.raw and (asked.template or asked.system or asked.context):
        raise ApiError(400, "raw mode does not support template, system, or context")
    check_thinking(model, asked)
    check_able(model, insert=bool(asked.suffix), vision=bool(asked.images))
    check_implemented(template=asked.template, format=asked.format, logprobs=asked.logprobs)
    options = read_options(model.parameters, asked.options)
    is_stream = asked.stream and bool(asked.prompt) and not asked.debug_render_only
    return ReplyResponse(_answers(context, model, asked, options, start_ns), stream=is_stream)


async def _answers(
    context: ServerContext,
    model: StoredModel,
    asked: GenerateRequest,
    options: Options,
    start_ns: int,
) -> AsyncGenerator[Json]:
    async with context.manager.use(model, asked.keep_alive) as loaded:
        timing = Timing(start_ns, time.monotonic_ns())
        if not asked.prompt:
            yield generate_done(asked.model, "load")
            return
        earlier = await asyncio.to_thread(_earlier_text, loaded.model.tokenizer, asked.context)
        prompt = generate_prompt(model, asked, earlier)
        if asked.debug_render_only:
            yield generate_debug(asked.model, earlier + prompt.text)
            return
        pieces = reply(loaded, prompt, options, timing, with_context=not asked.raw)
        async with aclosing(as_asked(pieces, stream=asked.stream)) as answers:
            async for piece in answers:
                yield generate_json(asked.model, piece)


def _earlier_text(tokenizer: Tokenizer, context: list[int]) -> str:
    """The text of a request's context.

    Raises ApiError (400) for ids that are no tokens of the model.
    """
    for token_id in context:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise ApiError(400, f"context holds {token_id}, which is no token of this model")
    return tokenizer.decode(context)
