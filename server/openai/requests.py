"""`/v1/chat/completions` and `/v1/completions` as requests of Ollama's own API."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from server.openai.content import read_parts
from server.openai.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    Message,
    ResponseFormat,
    SampledRequest,
    ToolCall,
)
from server.wire import schemas
from server.wire.errors import ApiError
from server.wire.go_json import parse_body
from server.wire.go_text import go_quote

log = logging.getLogger(__name__)

DEFAULT_TEMPERATURE = 1.0
_DEFAULT_TOP_P = 1.0
_EFFORTS: dict[str, bool | str | None] = {
    "": None,
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
_EFFORT_CHOICES = '"minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none"'


def chat_request(asked: ChatCompletionRequest) -> schemas.ChatRequest:
    """Raises ApiError (400) for what cannot be translated."""
    if not asked.messages:
        raise ApiError(400, "[] is too short - 'messages'")
    _note_ignored(asked)
    names = _names_of_calls(asked.messages)
    options = _options(asked)
    if asked.max_completion_tokens is not None:
        options["num_predict"] = asked.max_completion_tokens
    effort = asked.reasoning.effort if asked.reasoning else asked.reasoning_effort
    return schemas.ChatRequest(
        model=asked.model,
        messages=[_read_message(message, names) for message in asked.messages],
        stream=asked.stream,
        format=_format(asked.response_format),
        options=options,
        tools=asked.tools,
        think=think_of(effort or ""),
        logprobs=asked.logprobs,
        top_logprobs=asked.top_logprobs,
    )


def generate_request(asked: CompletionRequest) -> schemas.GenerateRequest:
    """Raises ApiError (400) for what cannot be translated."""
    _note_ignored(asked)
    if isinstance(asked.stop, list) and not all(isinstance(each, str) for each in asked.stop):
        raise ApiError(400, "invalid type for 'stop' field: it must be a string or strings")
    options = _options(asked)
    options["top_p"] = options["top_p"] or _DEFAULT_TOP_P  # Ollama takes 0 for not given here
    num_logprobs = max(asked.logprobs or 0, 0)
    return schemas.GenerateRequest(
        model=asked.model,
        prompt=asked.prompt,
        suffix=asked.suffix,
        stream=asked.stream,
        options=options,
        logprobs=num_logprobs > 0,
        top_logprobs=num_logprobs,
    )


def think_of(effort: str) -> Any:
    """A reasoning effort as a value of `think`. Raises ApiError (400) for one that is none."""
    if effort not in _EFFORTS:
        raise ApiError(
            400, f"invalid reasoning value: {go_quote(effort)} (must be {_EFFORT_CHOICES})"
        )
    return _EFFORTS[effort]


def role_of(role: str) -> str:
    """What OpenAI calls a developer's message is a system message to every model here."""
    return "system" if role.lower() == "developer" else role


def read_arguments(arguments: str) -> dict[str, Any]:
    """The arguments of a call, which are JSON in a string. Raises ApiError (400)."""
    try:
        value = parse_body(arguments.encode())
    except ApiError:
        value = ()
    if value is not None and not isinstance(value, dict):
        raise ApiError(400, "invalid tool call arguments")
    return value or {}


def _note_ignored(asked: SampledRequest) -> None:
    if asked.n not in (None, 1):
        log.warning("n is not supported: there is one reply to a request")


def _names_of_calls(messages: Sequence[Message]) -> dict[str, str]:
    """The names of the functions that were called, by the ids of the calls; the last one wins."""
    calls = [call for message in messages for call in message.tool_calls or ()]
    return {call.id: call.function.name for call in calls}


def _read_message(message: Message, names: dict[str, str]) -> schemas.Message:
    texts: list[str] = []
    images: list[str] = []
    if isinstance(message.content, str):
        texts = [message.content]
    elif isinstance(message.content, list):
        texts, images = read_parts(message.content)
    elif message.content is not None or message.tool_calls is None:
        kind = "null" if message.content is None else type(message.content).__name__
        raise ApiError(400, f"invalid message content type: {kind}")
    is_result = message.role.lower() == "tool"
    return schemas.Message(
        role=role_of(message.role),
        # Ollama makes messages of the parts, and joins those of one role so.
        content="\n\n".join(texts),
        thinking=message.reasoning,
        images=images,
        tool_calls=[_read_call(call) for call in message.tool_calls or ()],
        tool_name=(message.name or names.get(message.tool_call_id, "")) if is_result else "",
        tool_call_id=message.tool_call_id,
    )


def _read_call(call: ToolCall) -> schemas.ToolCall:
    arguments = read_arguments(call.function.arguments)
    function = schemas.ToolCallFunction(name=call.function.name, arguments=arguments)
    return schemas.ToolCall(id=call.id, function=function)


def _options(asked: SampledRequest) -> dict[str, Any]:
    options: dict[str, Any] = {"temperature": DEFAULT_TEMPERATURE, "top_p": _DEFAULT_TOP_P}
    if isinstance(asked.stop, str):
        options["stop"] = [asked.stop]
    elif isinstance(asked.stop, list):
        options["stop"] = [each for each in asked.stop if isinstance(each, str)]
    given = {
        "num_predict": asked.max_tokens,
        "temperature": asked.temperature,
        "seed": asked.seed,
        "frequency_penalty": asked.frequency_penalty,
        "presence_penalty": asked.presence_penalty,
        "top_p": asked.top_p,
    }
    return options | {name: value for name, value in given.items() if value is not None}


def _format(asked: ResponseFormat | None) -> Any:
    kind = asked.type.strip().lower() if asked else ""
    if kind == "json_object":
        return "json"
    if asked and kind == "json_schema" and asked.json_schema:
        return asked.json_schema.json_schema
    return None
