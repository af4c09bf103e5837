"""`/v1/messages` as a chat of Ollama's own API."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping
from typing import Any

from server.anthropic.schemas import (
    ContentBlock,
    CountTokensRequest,
    ImageSource,
    MessageParam,
    MessagesRequest,
    Tool,
)
from server.wire import schemas
from server.wire.errors import ApiError
from server.wire.go_decode import decode
from server.wire.go_text import go_quote

log = logging.getLogger(__name__)

_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "max"}


def messages_chat_request(asked: MessagesRequest) -> schemas.ChatRequest:
    """Raises ApiError (400) for what cannot be translated."""
    if asked.model and asked.max_tokens <= 0:
        raise ApiError(400, "max_tokens is required and must be positive")
    chat = prompt_chat_request(asked)
    given = {
        "num_predict": asked.max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "stop": asked.stop_sequences or None,
    }
    chat.options = {name: value for name, value in given.items() if value is not None}
    chat.stream = asked.stream
    return chat


def prompt_chat_request(asked: CountTokensRequest) -> schemas.ChatRequest:
    """Only what the prompt is made of. Raises ApiError (400) for what cannot be translated."""
    for field, value in (("model", asked.model), ("messages", asked.messages)):
        if not value:
            raise ApiError(400, f"{field} is required")
    messages = [each for message in asked.messages for each in _read_message(message)]
    if not messages:
        raise ApiError(400, "messages have no content")
    system = _read_system(asked.system)
    if system:
        messages.insert(0, schemas.Message(role="system", content=system))
    return schemas.ChatRequest(
        model=asked.model,
        messages=_with_tool_names(messages),
        tools=[tool for each in asked.tools for tool in _read_tool(each)],
        think=_think(asked),
    )


def _think(asked: CountTokensRequest) -> Any:
    kind = asked.thinking.type if asked.thinking else ""
    if kind in ("enabled", "disabled"):
        return kind == "enabled"
    effort = asked.output_config.effort if asked.output_config else ""
    return _EFFORTS.get(effort.strip().lower())


def _read_system(system: Any) -> str:
    if isinstance(system, str):
        return system
    blocks = system if isinstance(system, list) else []
    return "".join(_texts_of(blocks))


def _texts_of(blocks: list[Any]) -> list[str]:
    """The texts among blocks that may be anything."""
    texts = [
        block.get("text")
        for block in blocks
        if isinstance(block, Mapping) and block.get("type") == "text"
    ]
    return [text for text in texts if isinstance(text, str)]


def _read_message(message: MessageParam) -> list[schemas.Message]:
    """The results of tools that a turn brings, and what it says; one of them may be missing."""
    if isinstance(message.content, str):
        return [schemas.Message(role=message.role, content=message.content)]
    said = schemas.Message(role=message.role.lower())
    results: list[schemas.Message] = []
    for block in _read_blocks(message.content):
        if block.type == "text":
            said.content += block.text
        elif block.type == "thinking":
            said.thinking = block.thinking
        elif block.type == "image":
            said.images.append(_image_data(block.source))
        elif block.type in ("tool_use", "server_tool_use"):
            said.tool_calls.append(_read_call(block))
        elif block.type in ("tool_result", "web_search_tool_result"):
            results.append(_read_result(block))
    has_said = bool(said.content or said.images or said.tool_calls or said.thinking)
    turns = [said] if has_said else []
    return [*results, *turns] if said.role == "user" else [*turns, *results]


def _read_blocks(content: Any) -> list[ContentBlock]:
    if not isinstance(content, list):
        raise ApiError(400, "content must be a string or a list of blocks")
    return [decode(ContentBlock, block) for block in content]


def _read_call(block: ContentBlock) -> schemas.ToolCall:
    for field, value in (("id", block.id), ("name", block.name)):
        if not value:
            raise ApiError(400, f"tool_use block missing required '{field}' field")
    function = schemas.ToolCallFunction(name=block.name, arguments=block.input)
    return schemas.ToolCall(id=block.id, function=function)


def _read_result(block: ContentBlock) -> schemas.Message:
    content, images = block.content, []
    if isinstance(content, list):
        for part in content:
            if isinstance(part, Mapping) and part.get("type") == "image":
                if not isinstance(part.get("source"), Mapping):
                    raise ApiError(400, "invalid tool_result image source")
                images.append(_image_data(decode(ImageSource, part["source"])))
        content = "".join(_texts_of(content))
    text = content if isinstance(content, str) else ""
    return schemas.Message(role="tool", content=text, images=images, tool_call_id=block.tool_use_id)


def _image_data(source: ImageSource | None) -> str:
    if source is None:
        raise ApiError(400, "invalid image source")
    if source.type != "base64":
        raise ApiError(
            400, f"invalid image source type: {source.type}. Only base64 images are supported."
        )
    try:
        base64.b64decode(source.data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "invalid base64 image data") from None
    return source.data


def _with_tool_names(messages: list[schemas.Message]) -> list[schemas.Message]:
    """Results say which call they are of; a prompt may want the name of the tool."""
    names = {call.id: call.function.name for each in messages for call in each.tool_calls}
    for message in messages:
        message.tool_name = names.get(message.tool_call_id, "")
    return messages


def _read_tool(tool: Tool) -> list[schemas.Tool]:
    """The function that is offered; none for a tool that only Anthropic's servers can run."""
    if tool.type.startswith(("web_search", "web_fetch", "code_execution")) or not tool.name:
        log.warning("tool of type %s is not offered: it is no function", go_quote(tool.type))
        return []
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.input_schema is not None:
        function["parameters"] = tool.input_schema
    try:
        return [decode(schemas.Tool, {"type": "function", "function": function})]
    except ApiError as error:
        raise ApiError(
            400, f"invalid input_schema for tool {go_quote(tool.name)}: {error}"
        ) from None
