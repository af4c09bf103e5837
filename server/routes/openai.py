"""OpenAI's API: `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`,
`/v1/models`.
"""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from torch import Tensor

from server.context import context_of, read_request
from server.openai.chat_writer import ChatWriter
from server.openai.completion_writer import CompletionWriter
from server.openai.embeddings import embeddings_input, embeddings_json
from server.openai.models import model_json
from server.openai.requests import chat_request, generate_request
from server.openai.responses_input import responses_chat_request
from server.openai.responses_schemas import ResponsesRequest
from server.openai.responses_writer import ResponsesWriter
from server.openai.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
)
from server.replies.embeddings import embed_texts, find_embedder
from server.replies.replies import begin_generate, chat_reply, checked_chat
from server.store.stored_model import list_models
from server.wire.errors import model_not_found
from server.wire.event_stream import answer
from server.wire.openapi import takes
from server.wire.streaming import JSON_TYPE, json_response, unless_gone

router = APIRouter(prefix="/v1")


@router.post("/chat/completions", openapi_extra=takes(ChatCompletionRequest))
async def chat_completions(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, ChatCompletionRequest)
    context = context_of(request)
    chat = await checked_chat(context, chat_request(asked))
    if asked.debug_render_only:
        return json_response(ChatWriter(asked).debug(chat.prompt.text))
    pieces = chat_reply(context, chat, start_ns)
    return await answer(request, pieces, ChatWriter(asked), stream=asked.stream)


@router.post("/completions", openapi_extra=takes(CompletionRequest))
async def completions(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, CompletionRequest)
    pieces = await begin_generate(context_of(request), generate_request(asked), start_ns)
    return await answer(request, pieces, CompletionWriter(asked), stream=asked.stream)


@router.post("/responses", openapi_extra=takes(ResponsesRequest))
async def responses(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, ResponsesRequest)
    context = context_of(request)
    chat = await checked_chat(context, responses_chat_request(asked))
    pieces = chat_reply(context, chat, start_ns)
    return await answer(request, pieces, ResponsesWriter(asked), stream=asked.stream)


@router.post("/embeddings", openapi_extra=takes(EmbeddingsRequest))
async def embeddings(request: Request) -> Response:
    asked = await read_request(request, EmbeddingsRequest)
    texts = embeddings_input(asked)
    context = context_of(request)
    model = await find_embedder(context, asked.model)

    async def embedded() -> tuple[list[Tensor], int]:
        async with context.manager.use(model) as loaded:
            return await embed_texts(loaded, texts)

    vectors, num_tokens = await unless_gone(request, embedded())
    body = embeddings_json(asked, vectors, num_tokens)
    return StreamingResponse(body, media_type=JSON_TYPE.decode())


@router.get("/models")
async def models(request: Request) -> Response:
    stored = await asyncio.to_thread(list_models, context_of(request).store)
    data = [model_json(model, model.name.shortest) for model in stored]
    return json_response({"object": "list", "data": data})


@router.get("/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    if not name:
        raise model_not_found(name)
    return json_response(model_json(await context_of(request).find_model(name), name))
