"""Vectors of texts: many at once, a few of them in the engine at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkv_core.cache import TokenIds
from rwkv_core.engine import EmbeddedEvent
from rwkv_core.errors import GenerationError
from server.context import ServerContext
from server.loading.model_manager import LoadedModel
from server.store.stored_model import StoredModel
from server.wire.errors import ApiError
from server.wire.go_text import go_quote
from server.wire.streaming import embed

# Of one request: their vectors are in memory until the last one is there, 16 KB each at 7.2B.
_MAX_TEXTS = 10_000
# Where Ollama's normalisation stops a division by zero.
_LEAST_NORM = 1e-12


async def embed_texts(loaded: LoadedModel, texts: Sequence[str]) -> tuple[list[Tensor], int]:
    """For each text its vector [D] float32, and how many tokens they have together.

    At most half of the engine's slots are taken, so that chats go on beside them, and only so many
    texts have tokens in memory. The first error ends them all, and so does cancelling. Raises
    ApiError (400) for too many texts, and what the engine failed with.
    """
    if len(texts) > _MAX_TEXTS:
        raise ApiError(400, f"input has {len(texts)} texts; send at most {_MAX_TEXTS} at a time")
    vectors: list[Tensor | None] = [None] * len(texts)
    waiting = iter(enumerate(texts))
    num_tokens = 0

    async def work() -> None:
        nonlocal num_tokens
        for index, text in waiting:
            event = await _embed_text(loaded, text)
            vectors[index] = event.vector
            num_tokens += event.num_tokens

    num_workers = max(1, min(len(texts), loaded.engine.load.num_slots // 2))
    workers = [asyncio.create_task(work()) for _ in range(num_workers)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [vector for vector in vectors if vector is not None], num_tokens


def normalised(vector: Tensor, dimensions: int = 0) -> Tensor:
    """The vector, cut to its first `dimensions` if it has more (0: all), at length 1."""
    if 0 < dimensions < len(vector):
        vector = vector[:dimensions]
    length: Tensor = vector.norm().clamp_min(_LEAST_NORM)
    return vector / length


def shortest_numbers(vector: Tensor) -> list[float]:
    """The values of a float32 vector with as few digits as tell them apart, as Go writes them."""
    numbers: list[float] = vector.numpy().astype(str).astype(float).tolist()
    return numbers


def read_texts(value: Any) -> list[str]:
    """What a request's `input` holds. Raises ApiError (400) for anything but text."""
    if value is None or value == "":
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ApiError(400, "invalid input type")
    return texts


async def find_embedder(context: ServerContext, name: str) -> StoredModel:
    """`find_model` with the words that Ollama has here for a model that is not there."""
    try:
        return await context.find_model(name)
    except ApiError as error:
        if error.status != 404:
            raise
        raise ApiError(404, f"model {go_quote(name)} not found, try pulling it first") from None


async def _embed_text(loaded: LoadedModel, text: str) -> EmbeddedEvent:
    tokens: TokenIds = (await asyncio.to_thread(loaded.encoder.encode, text)).tokens
    if not len(tokens):
        # What the model reads between two texts, and nothing else.
        tokens = [min(loaded.model.tokenizer.eos_token_ids, default=0)]
    event = await embed(loaded.engine, tokens)
    if not bool(torch.isfinite(event.vector).all()):
        raise GenerationError("embedding contains NaN or Inf values")
    return event
