"""`/api/embed` and the older `/api/embeddings`: texts as vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from torch import Tensor

from server.context import ServerContext, context_of, read_request
from server.replies.embeddings import (
    embed_texts,
    find_embedder,
    normalised,
    read_texts,
    shortest_numbers,
)
from server.replies.options import read_options
from server.store.stored_model import StoredModel
from server.wire.answers import Json, without_zeros
from server.wire.embed_schemas import EmbeddingRequest, EmbedRequest
from server.wire.errors import ApiError, model_not_found
from server.wire.openapi import takes
from server.wire.streaming import JSON_TYPE, json_response, to_json, unless_gone

router = APIRouter()


@router.post("/api/embed", openapi_extra=takes(EmbedRequest))
async def embed(request: Request) -> Response:
    start_ns = time.monotonic_ns()
    asked = await read_request(request, EmbedRequest)
    if not asked.model.strip():
        raise model_not_found(asked.model)
    texts = read_texts(asked.input)
    context = context_of(request)
    model = await find_embedder(context, asked.model)
    read_options(model.parameters, asked.options)
    pieces = await unless_gone(request, _embed(context, model, asked, texts, start_ns))
    return StreamingResponse(pieces, media_type=JSON_TYPE.decode())


@router.post("/api/embeddings", openapi_extra=takes(EmbeddingRequest))
async def embeddings(request: Request) -> Response:
    asked = await read_request(request, EmbeddingRequest)
    if not asked.model.strip():
        raise ApiError(400, "model is required")
    context = context_of(request)
    model = await find_embedder(context, asked.model)
    read_options(model.parameters, asked.options)
    answer = await unless_gone(request, _embed_prompt(context, model, asked))
    return json_response(answer)


async def _embed(
    context: ServerContext,
    model: StoredModel,
    asked: EmbedRequest,
    texts: list[str],
    start_ns: int,
) -> Iterator[bytes]:
    async with context.manager.use(model, asked.keep_alive) as loaded:
        loaded_ns = time.monotonic_ns()
        if not texts:
            return _pieces(asked.model, [], {})
        vectors, num_tokens = await embed_texts(loaded, texts)
    vectors = [normalised(vector, asked.dimensions) for vector in vectors]
    metrics = {
        "total_duration": time.monotonic_ns() - start_ns,
        "load_duration": loaded_ns - start_ns,
        "prompt_eval_count": num_tokens,
    }
    return _pieces(asked.model, vectors, without_zeros(metrics))


def _pieces(model: str, vectors: list[Tensor], metrics: Json) -> Iterator[bytes]:
    """The answer, a vector at a time: as text all together would take a lot of memory."""
    yield b'{"model":' + to_json(model) + b',"embeddings":['
    for index, vector in enumerate(vectors):
        yield (b"," if index else b"") + to_json(shortest_numbers(vector))
    yield b"]" + b"".join(b',"%b":%d' % (name.encode(), metrics[name]) for name in metrics) + b"}"


async def _embed_prompt(
    context: ServerContext, model: StoredModel, asked: EmbeddingRequest
) -> Json:
    async with context.manager.use(model, asked.keep_alive) as loaded:
        if not asked.prompt:
            return {"embedding": []}
        vectors, _ = await embed_texts(loaded, [asked.prompt])
    return {"embedding": shortest_numbers(normalised(vectors[0]))}
