"""`/v1/responses` as a chat: its items become messages, its flat tools Ollama's nested ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from server.openai.content import image_data
from server.openai.requests import DEFAULT_TEMPERATURE, read_arguments, role_of, think_of
from server.openai.responses_schemas import ResponsesRequest, ResponsesTool
from server.wire import schemas
from server.wire.errors import ApiError
from server.wire.go_decode import decode
from server.wire.go_text import go_quote

log = logging.getLogger(__name__)

_MAX_NAMESPACES = 8  # inside one another

_ASSISTANT = "assistant"


def responses_chat_request(asked: ResponsesRequest) -> schemas.ChatRequest:
    """Raises ApiError (400) for what cannot be translated."""
    if asked.previous_response_id or asked.conversation:
        field = "previous_response_id" if asked.previous_response_id else "conversation"
        raise ApiError(
            400, f"{field} is not supported: responses are not stored; send all items as input"
        )
    messages = _read_input(asked.input)
    if not messages:
        raise ApiError(400, "input is required")
    if asked.instructions:
        messages.insert(0, schemas.Message(role="system", content=asked.instructions))
    given = {
        "temperature": DEFAULT_TEMPERATURE if asked.temperature is None else asked.temperature,
        "top_p": asked.top_p,  # the model's own unless it is given, as in Ollama
        "num_predict": asked.max_output_tokens,
    }
    options = {name: value for name, value in given.items() if value is not None}
    text_format = asked.text.format if asked.text else None
    is_schema = text_format is not None and text_format.type == "json_schema"
    return schemas.ChatRequest(
        model=asked.model,
        messages=messages,
        stream=asked.stream,
        format=text_format.text_schema if text_format and is_schema else None,
        options=options,
        tools=[tool for each in asked.tools for tool in _read_tool(each)],
        think=think_of(asked.reasoning.effort),
    )


def _read_input(value: Any) -> list[schemas.Message]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [schemas.Message(role="user", content=value)]
    if not isinstance(value, list):
        raise ApiError(400, "input must be a string or array")
    reader = _ItemReader()
    for index, item in enumerate(value):
        try:
            reader.read(item)
        except ApiError as error:
            raise ApiError(400, f"input[{index}]: {error}") from None
    return reader.messages


class _ItemReader:
    """Items one by one into messages.

    What the assistant said, thought and called without an answer between is one message.
    """

    def __init__(self) -> None:
        self.messages: list[schemas.Message] = []
        self._names: dict[str, str] = {}  # of called functions, by the ids of the calls
        self._thought = ""

    def read(self, item: Any) -> None:
        if not isinstance(item, Mapping):
            raise ApiError(400, "an input item must be an object")
        kind = item.get("type") or ("message" if item.get("role") else None)
        if kind == "message":
            self._read_message(item)
        elif kind == "function_call":
            self._read_call(item)
        elif kind == "function_call_output":
            self._read_output(item)
        elif kind == "reasoning":
            self._thought = _string(item, "encrypted_content")
        elif kind is None:
            raise ApiError(400, "input item missing required 'type' field")
        elif kind != "web_search_call":  # of those the message after them says all
            raise ApiError(400, f"unknown input item type: {go_quote(str(kind))}")

    def _read_message(self, item: Mapping[str, Any]) -> None:
        role = role_of(_string(item, "role"))
        text, images = _read_content(item.get("content"), "content")
        last = self.messages[-1] if self.messages else None
        if role == _ASSISTANT and last and last.role == _ASSISTANT and last.tool_calls:
            # Some clients put what was said beside a call behind it: the result must follow it.
            last.content = "\n".join(filter(None, (last.content, text)))
            return
        thought = self._take_thought() if role == _ASSISTANT else ""
        self.messages.append(
            schemas.Message(role=role, content=text, images=images, thinking=thought)
        )

    def _read_call(self, item: Mapping[str, Any]) -> None:
        call_id, name = _string(item, "call_id"), _string(item, "name")
        arguments = _string(item, "arguments")
        function = schemas.ToolCallFunction(
            name=name, arguments=read_arguments(arguments) if arguments else {}
        )
        self._names[call_id] = name
        if not self.messages or self.messages[-1].role != _ASSISTANT:
            self.messages.append(schemas.Message(role=_ASSISTANT))
        message = self.messages[-1]
        message.tool_calls.append(schemas.ToolCall(id=call_id, function=function))
        message.thinking = self._take_thought() or message.thinking

    def _read_output(self, item: Mapping[str, Any]) -> None:
        call_id = _string(item, "call_id")
        text, images = _read_content(item.get("output"), "output")
        self.messages.append(
            schemas.Message(
                role="tool",
                content=text,
                images=images,
                tool_name=self._names.get(call_id, ""),
                tool_call_id=call_id,
            )
        )

    def _take_thought(self) -> str:
        thought, self._thought = self._thought, ""
        return thought


def _string(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ApiError(400, f"{name} must be a string")
    return value


def _read_content(content: Any, name: str) -> tuple[str, list[str]]:
    """The text and the images (base64) of a message or of a call's output."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise ApiError(400, f"{name} must be a string or array")
    texts: list[str] = []
    images: list[str] = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise ApiError(400, f"{name}[{index}] must be an object")
        kind = part.get("type")
        if kind in ("input_text", "output_text"):
            texts.append(_string(part, "text"))
        elif kind == "input_image":
            url = _string(part, "image_url")
            images += [image_data(url)] if url else []
        elif kind == "input_file":
            raise ApiError(400, "file inputs are not currently supported")
        else:
            raise ApiError(400, f"{name}[{index}]: unknown content type: {kind}")
    return "".join(texts), images


def _read_tool(tool: ResponsesTool, prefix: str = "", depth: int = 0) -> Iterator[schemas.Tool]:
    """The functions that a declaration offers."""
    if depth > _MAX_NAMESPACES:
        raise ApiError(400, f"tools: more than {_MAX_NAMESPACES} namespaces inside one another")
    name = tool.name if tool.name.startswith(prefix) else prefix + tool.name
    if tool.type == "namespace":
        for member in tool.tools:
            yield from _read_tool(member, f"{name}." if name else "", depth + 1)
    elif not tool.name:
        # Tools that run at the provider, such as web_search: nobody here could answer a call.
        log.warning("tool of type %s is not offered: it is no function", go_quote(tool.type))
    else:
        function: dict[str, Any] = {"name": name, "description": tool.description or ""}
        if tool.parameters is not None:
            function["parameters"] = tool.parameters
        try:
            yield decode(schemas.Tool, {"type": "function", "function": function})
        except ApiError as error:
            raise ApiError(400, f"failed to unmarshal tool parameters: {error}") from None
