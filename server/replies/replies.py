"""From a request to the pieces of its reply: what Ollama's routes and those of other APIs share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from rwkv_core.engine import GenerationStats
from rwkv_core.tokenizer import Tokenizer
from server.context import ServerContext
from server.loading.model_manager import LoadedModel
from server.replies.constraints import read_format
from server.replies.generation import Final, Piece, Timing, reply
from server.replies.inference import (
    as_asked,
    check_able,
    check_thinking,
    check_top_logprobs,
    wanted_top_logprobs,
)
from server.replies.options import Options, read_options
from server.replies.prompts import Prompt, chat_prompt, generate_prompt
from server.sessions.turns import Turn, kept
from server.store.stored_model import StoredModel
from server.wire.errors import ApiError, model_not_found
from server.wire.schemas import ChatRequest, GenerateRequest


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
    read_format(asked.format)  # a wrong one is refused before a model is loaded
    return read_options(model.parameters, asked.options)


@dataclass(frozen=True)
class Chat:
    """A checked chat: all that its reply needs."""

    model: StoredModel
    asked: ChatRequest
    prompt: Prompt
    options: Options


async def checked_chat(
    context: ServerContext, asked: ChatRequest, *, relax_thinking: bool = False
) -> Chat:
    """A chat that has messages. `relax_thinking`: a model that cannot think is not asked to.

    Raises ApiError (400, 404), OptionError, InvalidNameError, DamagedModelError.
    """
    check_chat_request(asked)
    model = await context.find_model(asked.model)
    if relax_thinking and "thinking" not in model.capabilities:
        asked = asked.model_copy(update={"think": None})
    options = chat_options(model, asked)
    prompt = await asyncio.to_thread(chat_prompt, model, asked)
    return Chat(model, asked, prompt, options)


async def chat_reply(
    context: ServerContext, chat: Chat, start_ns: int, turn: Turn | None = None
) -> AsyncGenerator[Piece]:
    """The pieces of a chat's reply, or one with the whole of it if that was asked for."""
    async with context.manager.use(chat.model, chat.asked.keep_alive) as loaded:
        timing = Timing(start_ns, time.monotonic_ns())
        pieces = reply(
            loaded,
            chat.prompt,
            chat.options,
            timing,
            schema=read_format(chat.asked.format),
            num_top_logprobs=wanted_top_logprobs(chat.asked),
        )
        if turn is not None:
            pieces = kept(turn, pieces)
        async with aclosing(as_asked(pieces, stream=chat.asked.stream)) as answers:
            async for piece in answers:
                yield piece


async def num_prompt_tokens(context: ServerContext, chat: Chat) -> int:
    """As many as the engine would read; loads the model, whose tokenizer counts."""
    async with context.manager.use(chat.model, chat.asked.keep_alive) as loaded:
        encoded = await asyncio.to_thread(loaded.encoder.encode, chat.prompt.text)
        return len(encoded.tokens)


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
    read_format(asked.format)  # a wrong one is refused before a model is loaded
    return read_options(model.parameters, asked.options)


async def begin_generate(
    context: ServerContext, asked: GenerateRequest, start_ns: int
) -> AsyncGenerator[Piece]:
    """Checks a prompt and gives its reply, which starts with the first piece.

    An empty prompt only loads the model. Raises what `checked_chat` raises.
    """
    check_generate_request(asked)
    model = await context.find_model(asked.model)
    options = generate_options(model, asked)
    if not asked.prompt:
        return _load(context, model, start_ns)
    return generate_reply(context, model, asked, options, start_ns)


async def prompt_after_context(
    loaded: LoadedModel, model: StoredModel, asked: GenerateRequest
) -> tuple[str, Prompt]:
    """The text of a request's context, and the prompt that comes after it."""
    earlier = await asyncio.to_thread(_text_of, loaded.model.tokenizer, asked.context)
    return earlier, await asyncio.to_thread(generate_prompt, model, asked, earlier)


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
        pieces = reply(
            loaded,
            prompt,
            options,
            timing,
            with_context=not asked.raw,
            schema=read_format(asked.format),
            num_top_logprobs=wanted_top_logprobs(asked),
        )
        async with aclosing(as_asked(pieces, stream=asked.stream)) as answers:
            async for piece in answers:
                yield piece


async def _load(context: ServerContext, model: StoredModel, start_ns: int) -> AsyncGenerator[Piece]:
    async with context.manager.use(model):
        load_ns = time.monotonic_ns() - start_ns
        yield Piece(final=Final("load", GenerationStats(), (), load_ns, load_ns))


def _text_of(tokenizer: Tokenizer, context: Sequence[int]) -> str:
    """Raises ApiError (400) for ids that are no tokens of the model."""
    for token_id in context:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise ApiError(400, f"context holds {token_id}, which is no token of this model")
    return tokenizer.decode(context)
