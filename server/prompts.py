"""From a request to the text that the model reads, and to the parser that its reply needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from rwkv_core.cache import SnapshotKind
from rwkv_core.chat.messages import Message, Role, Think
from rwkv_core.chat.prompt_format import PromptFormat
from rwkv_core.chat.render import PromptPart, chat_parts, clean_text, render_chat
from server import schemas
from server.errors import ApiError
from server.go_text import go_quote
from server.stored_model import StoredModel
from server.tool_calls import called, offered_tool

_ROLES = get_args(Role)


# What the next turn may say: no token begins alike in all of these.
_NEXT_WORDS = ("a", "0", "(")


@dataclass(frozen=True)
class Mark:
    """A place in a prompt where other prompts may part from it."""

    num_chars: int
    kind: SnapshotKind


@dataclass(frozen=True)
class Conversation:
    """What a prompt was rendered from: all that the prompt after it will be, but for two turns."""

    messages: tuple[Message, ...]
    think: Think
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What the model reads: the tokens of an earlier `context`, then `text` in `format`.

    `think` is the mode to parse the reply in; None when the reply is taken as it is. `tools` are
    the names that a reply may call. `stops` end the reply besides the request's own. `marks` are in
    `text`. `conversation` is None when nothing can be said about what comes after the reply; its
    next prompt holds all of its messages again, or (`is_continued`) only new ones after a context.
    """

    text: str
    format: PromptFormat
    stops: tuple[str, ...] = ()
    think: Think | None = None
    tools: tuple[str, ...] = ()
    context: tuple[int, ...] = ()
    marks: tuple[Mark, ...] = ()
    conversation: Conversation | None = None
    is_continued: bool = False

    def next_texts(self, reply: Message) -> list[str]:
        """The next turn's prompt, once `reply` is part of it, for different things said in it."""
        if self.conversation is None:
            return []
        return [self._next_text(self.conversation, reply, word) for word in _NEXT_WORDS]

    def _next_text(self, conversation: Conversation, reply: Message, word: str) -> str:
        fmt, think = self.format, conversation.think
        if self.is_continued:
            return fmt.separator + render_chat(fmt, [Message("user", word)], think=think)
        said = Message("tool" if reply.tool_calls else "user", word)
        messages = [*conversation.messages, reply, said]
        return render_chat(fmt, messages, think=think, tools=conversation.tools)


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
    parts = chat_parts(fmt, messages, think=think)
    if request.context and not earlier.endswith(fmt.separator):
        parts.insert(0, PromptPart(fmt.separator))
    return Prompt(
        _text(parts),
        fmt,
        fmt.stops,
        think,
        context=tuple(request.context),
        marks=_marks(fmt, parts),
        conversation=Conversation(tuple(messages), think),
        is_continued=True,
    )


def chat_prompt(model: StoredModel, request: schemas.ChatRequest) -> Prompt:
    """The prompt of `/api/chat`: the model's own messages first, then the request's."""
    fmt, think = model.prompt_format, effective_think(model.prompt_format, request.think)
    messages = [*model.messages, *read_messages(request.messages)]
    if model.system and request.messages[0].role.lower() != "system":
        messages.insert(0, Message("system", model.system))
    tools = [offered_tool(tool) for tool in request.tools]
    parts = chat_parts(fmt, messages, think=think, tools=tools)
    prompt = Prompt(_text(parts), fmt, fmt.stops, marks=_marks(fmt, parts))
    last = messages[-1]
    if last.role == "assistant" and not last.tool_calls:
        return prompt  # the reply goes on inside that message
    return replace(
        prompt,
        think=think,
        tools=tuple(tool.function.name for tool in request.tools),
        conversation=Conversation(tuple(messages), think, tuple(tools)),
    )


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


def _text(parts: Sequence[PromptPart]) -> str:
    return "".join(part.text for part in parts)


def _marks(fmt: PromptFormat, parts: Sequence[PromptPart]) -> tuple[Mark, ...]:
    """The end of the system messages, and of every turn."""
    marks: list[Mark] = []
    num_chars = 0
    is_system = True
    for part in parts:
        num_chars += len(part.text)
        is_system = is_system and part.text.startswith(fmt.system)
        if part.text.endswith(fmt.separator) and not part.is_reply:
            kind = SnapshotKind.SYSTEM_PROMPT if is_system else SnapshotKind.TURN
            marks.append(Mark(num_chars, kind))
    return tuple(marks)
