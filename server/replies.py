"""From a request to the pieces of its reply: what Ollama's routes and those of other APIs share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from rwkv_core.tokenizer import Tokenizer
from server.context import ServerContext
from server.errors import ApiError, model_not_found
from server.generation import Piece, Timing, reply
from server.inference import (
    as_asked,
    check_able,
    check_implemented,
    check_thinking,
    check_top_logprobs,
)
from server.model_manager import LoadedModel
from server.options import Options, read_options
from server.prompts import Prompt, chat_prompt, generate_prompt
from server.schemas import ChatRequest, GenerateRequest
from server.sessions.turns import Turn, kept
from server.stored_model import StoredModel


def check_chat_request(asked: ChatRequest) -> None:
    """The checks that need no model. Raises ApiError (400)."""
    check_top_logprobs(asked)
    if not asked.model.strip():
        raise ApiError(400, "model is required")


def chat_options(model: StoredModel, asked: ChatRequest) -> Options:
    """The options of a chat that the model is able to answer.

    Raises ApiError (400), OptionError.
    """
    check_thinking(model, asked)
    has_images = any(message.images for message in asked.messages)
    check_able(model, tools=bool(asked.tools), vision=has_images)
    check_implemented(format=asked.format, logprobs=asked.logprobs)
    return read_options(model.parameters, asked.options)


async def begin_chat(
    context: ServerContext, asked: ChatRequest, start_ns: int
) -> AsyncGenerator[Piece]:
    """Checks a chat that has messages and gives its reply, which starts with the first piece.

    Raises ApiError (400, 404), OptionError, InvalidNameError, DamagedModelError.
    """
    check_chat_request(asked)
    model = await context.find_model(asked.model)
    options = chat_options(model, asked)
    return chat_reply(context, model, asked, chat_prompt(model, asked), options, start_ns)


async def chat_reply(
    context: ServerContext,
    model: StoredModel,
    asked: ChatRequest,
    prompt: Prompt,
    options: Options,
    start_ns: int,
    turn: Turn | None = None,
) -> AsyncGenerator[Piece]:
    """The pieces of a checked chat's reply, or one with the whole of it if that was asked for."""
    async with context.manager.use(model, asked.keep_alive) as loaded:
        timing = Timing(start_ns, time.monotonic_ns())
        pieces = reply(loaded, prompt, options, timing)
        if turn is not None:
            pieces = kept(turn, pieces)
        async with aclosing(as_asked(pieces, stream=asked.stream)) as answers:
            async for piece in answers:
                yield piece


def check_generate_request(asked: GenerateRequest) -> None:
    """The checks that need no model. Raises ApiError (400, 404)."""
    check_top_logprobs(asked)
    if not asked.model.strip():
        raise model_not_found(asked.model)


def generate_options(model: StoredModel, asked: GenerateRequest) -> Options:
    """The options of a prompt that the model is able to go on with.

    Raises ApiError (400), OptionError.
    """
    if asked.raw and (asked.template or asked.system or asked.context):
        raise ApiError(400, "raw mode does not support template, system, or context")
    check_thinking(model, asked)
    check_able(model, insert=bool(asked.suffix), vision=bool(asked.images))
    check_implemented(template=asked.template, format=asked.format, logprobs=asked.logprobs)
    return read_options(model.parameters, asked.options)


async def begin_generate(
    context: ServerContext, asked: GenerateRequest, start_ns: int
) -> AsyncGenerator[Piece]:
    """Checks a prompt and gives its reply, which starts with the first piece.

    Raises what `begin_chat` raises.
    """
    check_generate_request(asked)
    model = await context.find_model(asked.model)
    options = generate_options(model, asked)
    return generate_reply(context, model, asked, options, start_ns)


async def prompt_after_context(
    loaded: LoadedModel, model: StoredModel, asked: GenerateRequest
) -> tuple[str, Prompt]:
    """The text of a request's context, and the prompt that comes after it."""
    earlier = await asyncio.to_thread(_text_of, loaded.model.tokenizer, asked.context)
    return earlier, generate_prompt(model, asked, earlier)


async def generate_reply(
    context: ServerContext,
    model: StoredModel,
    asked: GenerateRequest,
    options: Options,
    start_ns: int,
) -> AsyncGenerator[Piece]:
    """The pieces of a checked prompt's reply, or one with the whole of it if that was asked for."""
    async with context.manager.use(model, asked.keep_alive) as loaded:
        timing = Timing(start_ns, time.monotonic_ns())
        _, prompt = await prompt_after_context(loaded, model, asked)
        pieces = reply(loaded, prompt, options, timing, with_context=not asked.raw)
        async with aclosing(as_asked(pieces, stream=asked.stream)) as answers:
            async for piece in answers:
                yield piece


def _text_of(tokenizer: Tokenizer, context: Sequence[int]) -> str:
    """Raises ApiError (400) for ids that are no tokens of the model."""
    for token_id in context:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise ApiError(400, f"context holds {token_id}, which is no token of this model")
    return tokenizer.decode(context)
