"""Anthropic's API: `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.anthropic.requests import messages_chat_request, prompt_chat_request
from server.anthropic.schemas import CountTokensRequest, MessagesRequest
from server.anthropic.writer import MessageWriter
from server.context import context_of, read_request
from server.replies.replies import chat_reply, checked_chat, num_prompt_tokens
from server.wire.event_stream import answer
from server.wire.openapi import takes
from server.wire.streaming import json_response, unless_gone

router = APIRouter(prefix="/v1/messages")


@router.post("", openapi_extra=takes(MessagesRequest))
async def messages(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, MessagesRequest)
    context = context_of(request)
    # Programs written for Anthropic's models ask all of them to think.
    chat = await checked_chat(context, messages_chat_request(asked), relax_thinking=True)
    pieces = chat_reply(context, chat, start_ns)
    writer = MessageWriter(asked.model, asked.stop_sequences, len(chat.prompt.text))
    return await answer(request, pieces, writer, stream=asked.stream)


@router.post("/count_tokens", openapi_extra=takes(CountTokensRequest))
async def count_tokens(request: Request) -> Response:
    asked = await read_request(request, CountTokensRequest)
    context = context_of(request)
    chat = await checked_chat(context, prompt_chat_request(asked), relax_thinking=True)
    count = await unless_gone(request, num_prompt_tokens(context, chat))
    return json_response({"input_tokens": count})
