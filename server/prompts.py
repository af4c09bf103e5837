"""From a request to the text that the model reads, and to the parser that its reply needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from rwkv_core.chat.messages import Message, Role, Think
from rwkv_core.chat.prompt_format import PromptFormat
from rwkv_core.chat.render import clean_text, render_chat
from server import schemas
from server.errors import ApiError
from server.go_text import go_quote
from server.stored_model import StoredModel
from server.tool_calls import called, offered_tool

_ROLES = get_args(Role)


@dataclass(frozen=True)
class Prompt:
    """What the model reads: the tokens of an earlier `context`, then `text` in `format`.

    `think` is the mode to parse the reply in; None when the reply is taken as it is. `tools` are
    the names that a reply may call. `stops` end the reply besides the request's own.
    """

    text: str
    format: PromptFormat
    stops: tuple[str, ...] = ()
    think: Think | None = None
    tools: tuple[str, ...] = ()
    context: tuple[int, ...] = ()


def generate_prompt(model: StoredModel, request: schemas.GenerateRequest, earlier: str) -> Prompt:
    """The prompt of `/api/generate`. `earlier` is the text of the request's context."""
    fmt = model.prompt_format
    if request.raw:
        return Prompt(request.prompt, fmt)
    think = effective_think(fmt, request.think)
    system = request.system or model.system
    messages = [Message("system", system)] if system else []
    if request.context:
        # The context holds the model's own system message already. One that the request brings is
        # added unless it is the one that is there.
        is_new = bool(request.system) and f"{fmt.system} {clean_text(system)}" not in earlier
        messages = messages if is_new else []
    else:
        messages += model.messages
    messages.append(Message("user", request.prompt))
    text = render_chat(fmt, messages, think=think)
    if request.context and not earlier.endswith(fmt.separator):
        text = fmt.separator + text
    return Prompt(text, fmt, fmt.stops, think, context=tuple(request.context))


def chat_prompt(model: StoredModel, request: schemas.ChatRequest) -> Prompt:
    """The prompt of `/api/chat`: the model's own messages first, then the request's."""
    fmt, think = model.prompt_format, effective_think(model.prompt_format, request.think)
    messages = [*model.messages, *read_messages(request.messages)]
    if model.system and request.messages[0].role.lower() != "system":
        messages.insert(0, Message("system", model.system))
    tools = [offered_tool(tool) for tool in request.tools]
    text = render_chat(fmt, messages, think=think, tools=tools)
    last = messages[-1]
    if last.role == "assistant" and not last.tool_calls:
        return Prompt(text, fmt, fmt.stops)  # the reply goes on inside that message
    return Prompt(text, fmt, fmt.stops, think, tuple(tool.function.name for tool in request.tools))


def effective_think(fmt: PromptFormat, think: Think | None) -> Think:
    """Unset means on for a model that can think."""
    if not fmt.can_think:
        return Think.OFF
    return think or Think.ON


def read_messages(messages: Sequence[schemas.Message]) -> list[Message]:
    """Raises ApiError (400) for a role that does not exist."""
    return [_read_message(each) for each in messages]


def _read_message(message: schemas.Message) -> Message:
    role: Any = message.role.lower()
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise ApiError(400, f"invalid role: {go_quote(message.role)} (must be one of {known})")
    return Message(
        role=cast(Role, role),
        content=message.content,
        thinking=message.thinking,
        tool_calls=tuple(called(each) for each in message.tool_calls),
        tool_name=message.tool_name,
    )
