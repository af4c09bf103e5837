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
from server.replies.inference import check_able
from server.replies.options import Options
from server.replies.prompts import Prompt, chat_prompt
from server.replies.replies import Chat, chat_options, chat_reply, check_chat_request
from server.sessions.ids import SESSION_HEADER, asked_session
from server.sessions.turns import Turn
from server.store.stored_model import StoredModel
from server.wire.answers import Json, chat_debug, chat_done, chat_json
from server.wire.openapi import takes
from server.wire.schemas import ChatRequest
from server.wire.streaming import ReplyResponse, json_response

router = APIRouter()


@router.post("/api/chat", openapi_extra=takes(ChatRequest))
async def chat(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, ChatRequest)
    context = context_of(request)
    check_chat_request(asked)
    session_id = asked_session(asked.session, request.headers.get(SESSION_HEADER))
    model = await context.find_model(asked.model)
    if not asked.messages and asked.keep_alive == 0:
        context.manager.unload(model)
        return json_response(chat_done(asked.model, "unload") | _named(session_id))
    options = chat_options(model, asked)
    is_stream = asked.stream and bool(asked.messages) and not asked.debug_render_only
    if session_id:
        answers = _session_answers(context, model, asked, session_id, options, start_ns)
    else:
        # In a thread: a template, or a long chat, takes a while.
        prompt = await asyncio.to_thread(chat_prompt, model, asked) if asked.messages else None
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
    if prompt is None or asked.debug_render_only:
        async with context.manager.use(model, asked.keep_alive):
            if prompt is None:
                yield chat_done(asked.model, "load")
            else:
                yield chat_debug(asked.model, prompt.text)
        return
    checked = Chat(model, asked, prompt, options)
    async with aclosing(chat_reply(context, checked, start_ns, turn)) as pieces:
        async for piece in pieces:
            yield chat_json(asked.model, piece)
