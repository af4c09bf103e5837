"""`/api/chat`: the next turn of a conversation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.context import ServerContext, context_of, read_request
from server.errors import ApiError
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
from server.prompts import Prompt, chat_prompt
from server.schemas import ChatRequest
from server.sessions.ids import SESSION_HEADER, asked_session
from server.sessions.turns import Turn, kept
from server.stored_model import StoredModel
from server.streaming import ReplyResponse, json_response
from server.wire import Json, chat_debug, chat_done, chat_json

router = APIRouter()


@router.post("/api/chat", openapi_extra=takes(ChatRequest))
async def chat(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, ChatRequest)
    context = context_of(request)
    check_top_logprobs(asked)
    if not asked.model.strip():
        raise ApiError(400, "model is required")
    session_id = asked_session(asked.session, request.headers.get(SESSION_HEADER))
    model = await context.find_model(asked.model)
    if not asked.messages and asked.keep_alive == 0:
        context.manager.unload(model)
        return json_response(chat_done(asked.model, "unload") | _named(session_id))
    check_thinking(model, asked)
    has_images = any(message.images for message in asked.messages)
    check_able(model, tools=bool(asked.tools), vision=has_images)
    check_implemented(format=asked.format, logprobs=asked.logprobs)
    options = read_options(model.parameters, asked.options)
    is_stream = asked.stream and bool(asked.messages) and not asked.debug_render_only
    if session_id:
        answers = _session_answers(context, model, asked, session_id, options, start_ns)
    else:
        prompt = chat_prompt(model, asked) if asked.messages else None
        answers = _answers(context, model, asked, prompt, options, start_ns)
    return ReplyResponse(answers, stream=is_stream)


async def _session_answers(
    context: ServerContext,
    model: StoredModel,
    asked: ChatRequest,
    session_id: str,
    options: Options,
    start_ns: int,
) -> AsyncGenerator[Json]:
    """The answers in a session; the last one has its name."""
    async with context.sessions.turn(session_id, model) as turn:
        prompt = await asyncio.to_thread(_session_prompt, turn, model, asked)
        objects = _answers(context, model, asked, prompt, options, start_ns, turn)
        async with aclosing(objects) as answers:
            async for answer in answers:
                yield answer | _named(session_id if answer["done"] else "")


def _session_prompt(turn: Turn, model: StoredModel, asked: ChatRequest) -> Prompt | None:
    """The prompt of a request that sends its new messages only; None if it has none."""
    if not asked.messages:
        return None
    whole = turn.whole(asked)
    check_able(model, tools=bool(whole.tools))
    return replace(chat_prompt(model, whole), cache_scope=turn.cache_scope)


def _named(session_id: str) -> Json:
    return {"session": session_id} if session_id else {}


async def _answers(
    context: ServerContext,
    model: StoredModel,
    asked: ChatRequest,
    prompt: Prompt | None,
    options: Options,
    start_ns: int,
    turn: Turn | None = None,
) -> AsyncGenerator[Json]:
    async with context.manager.use(model, asked.keep_alive) as loaded:
        timing = Timing(start_ns, time.monotonic_ns())
        if prompt is None:
            yield chat_done(asked.model, "load")
            return
        if asked.debug_render_only:
            yield chat_debug(asked.model, prompt.text)
            return
        pieces = reply(loaded, prompt, options, timing)
        if turn is not None:
            pieces = kept(turn, pieces)
        async with aclosing(as_asked(pieces, stream=asked.stream)) as answers:
            async for piece in answers:
                yield chat_json(asked.model, piece)
