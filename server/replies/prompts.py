"""From a request to the text that the model reads, and to the parser that its reply needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast, get_args

from rwkv_core.cache import SnapshotKind
from rwkv_core.chat.messages import Message, Role, Think
from rwkv_core.chat.prompt_format import PromptFormat
from rwkv_core.chat.render import PromptPart, chat_parts, clean_text, render_chat
from rwkv_core.chat.reply import (
    Preamble,
    ReplyParser,
    TaggedReplyParser,
    format_preamble,
    tagged_preamble,
)
from server.chat_templates import ChatTemplate, TemplateChat, ThinkingTags, request_template
from server.go_template import TemplateError
from server.replies.tagged_calls import TaggedCallParser
from server.replies.tool_calls import ToolCallParser, called, offered_tool
from server.store.stored_model import StoredModel
from server.wire import schemas
from server.wire.errors import ApiError
from server.wire.go_text import go_quote

_ROLES = get_args(Role)


# What the next turn may say: no token begins alike in all of these.
_NEXT_WORDS = ("a", "0", "(")


class Mark(NamedTuple):
    """A place in a prompt where other prompts may part from it."""

    num_chars: int
    kind: SnapshotKind


@dataclass(frozen=True)
class Conversation:
    """What a prompt was rendered from: all that the prompt after it will be, but for two turns."""

    messages: tuple[Message, ...]
    think: Think | None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What the model reads: the tokens of an earlier `context`, then `text` in `format`, or made
    with `template`.

    `think` is the mode to parse the reply in; None when the reply is taken as it is. `tools` are
    the names that a reply may call. `stops` end the reply besides the request's own. `marks` are in
    `text`. `conversation` is None when nothing can be said about what comes after the reply; its
    next prompt holds all of its messages again, or (`is_continued`) only new ones after a context.
    States are shared with other prompts of the same `cache_scope`.
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
    cache_scope: str = ""
    template: ChatTemplate | None = None
    tags: ThinkingTags | None = None  # around a thought in the reply to a template

    def next_texts(self, reply: Message) -> list[str]:
        """The next turn's prompt, once `reply` is part of it, for different things said in it."""
        if self.conversation is None:
            return []
        if self.template is not None:
            kept = () if self.is_continued else (*self.conversation.messages, reply)
            try:
                return _next_rendered(self.template, replace(self.conversation, messages=kept))
            except TemplateError:
                return []  # one that refuses such a conversation, as some do
        fmt, think = self.format, self.conversation.think
        if self.is_continued:
            turns = [[Message("user", word)] for word in _NEXT_WORDS]
            return [fmt.separator + render_chat(fmt, turn, think=think) for turn in turns]
        messages = (*self.conversation.messages, reply)
        return _next_texts(fmt, replace(self.conversation, messages=messages))

    def reply_parser(self) -> ReplyParser | None:
        """Parts the thought of the reply from its content; None when it is taken as it is."""
        if self.think is None:
            return None
        if self.template is None:
            return ReplyParser(self.format, self.think)
        return TaggedReplyParser(self.text, *self.tags) if self.tags else None

    def preamble(self) -> Preamble:
        """What comes before the content of the reply, so that `reply_parser` finds it there."""
        if self.think is None:
            return Preamble()
        if self.template is None:
            return format_preamble(self.format, self.think)
        return tagged_preamble(self.text, *self.tags, self.think) if self.tags else Preamble()

    def tool_parser(self) -> ToolCallParser | TaggedCallParser | None:
        """Finds calls of tools in the reply; None when there can be none."""
        if not self.tools:
            return None
        if self.template is None:
            return ToolCallParser(self.format.tools, self.tools) if self.format.tools else None
        tag = self.template.tool_tag
        return TaggedCallParser(tag, self.tools) if tag else None


def generate_prompt(model: StoredModel, request: schemas.GenerateRequest, earlier: str) -> Prompt:
    """The prompt of `/api/generate`. `earlier` is the text of the request's context.

    Raises TemplateError where the template of the request or the model fails.
    """
    fmt = model.prompt_format
    if request.raw:
        return Prompt(request.prompt, fmt)
    template = request_template(request.template) if request.template else model.chat_template
    if template is not None:
        return _rendered_generate(model, request, template, earlier)
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
    """The prompt of `/api/chat`: the model's own messages first, then the request's.

    Raises TemplateError where the model's template fails.
    """
    template = model.chat_template
    if template is not None:
        return _rendered_chat(model, request, template)
    fmt, think = model.prompt_format, effective_think(model.prompt_format, request.think)
    messages = _with_own(model, request.messages)
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


def history_texts(
    model: StoredModel, messages: Sequence[schemas.Message], tools: Sequence[schemas.Tool]
) -> list[str]:
    """The next prompt of a chat that has got so far, for different things said in it."""
    fmt = model.prompt_format
    offered = tuple(offered_tool(tool) for tool in tools)
    whole = tuple(_with_own(model, messages))
    template = model.chat_template
    if template is not None:
        so_far = Conversation(whole, _template_think(template.thinking_tags, None), offered)
        return _next_rendered(template, so_far)
    return _next_texts(fmt, Conversation(whole, effective_think(fmt, None), offered))


def beginning_texts(
    model: StoredModel, messages: Sequence[schemas.Message], tools: Sequence[schemas.Tool]
) -> list[str]:
    """Prompts that go on from these messages with a reply, or with something else said: what they
    begin with alike ends with the last of these messages.
    """
    said = _with_own(model, messages)
    offered = [offered_tool(tool) for tool in tools]
    return [
        render_chat(model.prompt_format, said, tools=offered),
        render_chat(model.prompt_format, [*said, Message("user", _NEXT_WORDS[0])], tools=offered),
    ]


def effective_think(fmt: PromptFormat, think: Think | None) -> Think:
    """Unset means on for a model that can think."""
    if not fmt.can_think:
        return Think.OFF
    return think or Think.ON


def read_messages(messages: Sequence[schemas.Message]) -> list[Message]:
    """Raises ApiError (400) for a role that does not exist."""
    return [_read_message(each) for each in messages]


def _with_own(model: StoredModel, messages: Sequence[schemas.Message]) -> list[Message]:
    """The messages of a chat, behind those that the model itself begins with."""
    read = [*model.messages, *read_messages(messages)]
    is_own = not messages or messages[0].role.lower() != "system"
    return [Message("system", model.system), *read] if model.system and is_own else read


def _rendered_chat(
    model: StoredModel, request: schemas.ChatRequest, template: ChatTemplate
) -> Prompt:
    """A chat through the model's own template."""
    tags = template.thinking_tags
    chat = Conversation(
        tuple(_with_own(model, request.messages)),
        _template_think(tags, request.think),
        tuple(offered_tool(tool) for tool in request.tools),
    )
    text = _render(template, chat)
    marks = _rendered_marks(template, chat, text)
    prompt = Prompt(text, model.prompt_format, marks=marks, template=template, tags=tags)
    last = chat.messages[-1]
    if last.role == "assistant" and not last.tool_calls:
        return prompt  # the reply goes on inside that message
    names = tuple(tool.function.name for tool in request.tools)
    return replace(prompt, think=chat.think, tools=names, conversation=chat)


def _rendered_generate(
    model: StoredModel, request: schemas.GenerateRequest, template: ChatTemplate, earlier: str
) -> Prompt:
    """A prompt through the template of the request or the model."""
    tags = model.thinking_tags
    think = _template_think(tags, request.think)
    context = tuple(request.context)
    # A model of a built-in format ends its turns as it always does, whoever writes the prompt.
    stops = model.prompt_format.stops if model.chat_template is None else ()
    prompt = Prompt(
        "", model.prompt_format, stops, think, context=context, template=template, tags=tags
    )
    if request.suffix:
        return replace(prompt, text=template.render_insert(request.prompt, request.suffix, think))
    system = request.system or model.system
    is_new = not context or (bool(request.system) and system not in earlier)
    messages = [Message("system", system)] if system and is_new else []
    messages += () if context else model.messages
    chat = Conversation((*messages, Message("user", request.prompt)), think)
    text = _render(template, chat)
    marks = _rendered_marks(template, chat, text)
    return replace(prompt, text=text, marks=marks, conversation=chat, is_continued=True)


def _template_think(tags: ThinkingTags | None, think: Think | None) -> Think | None:
    """Unset means on for a model that can think, and nothing for others."""
    return think or (Think.ON if tags else None)


def _render(template: ChatTemplate, chat: Conversation) -> str:
    return template.render(TemplateChat(chat.messages, chat.tools, chat.think))


def _next_rendered(
    template: ChatTemplate, said: Conversation, words: Sequence[str] = _NEXT_WORDS
) -> list[str]:
    """The prompts of a conversation that goes on, for different things said next."""
    role: Role = "tool" if said.messages and said.messages[-1].tool_calls else "user"
    return [
        _render(template, replace(said, messages=(*said.messages, Message(role, word))))
        for word in words
    ]


def _rendered_marks(template: ChatTemplate, chat: Conversation, text: str) -> tuple[Mark, ...]:
    """Where prompts part that have the same system messages, or all but the last message.

    A template does not say where its turns end: it is tried.
    """
    num_system = next(
        (i for i, each in enumerate(chat.messages) if each.role != "system"), len(chat.messages)
    )
    ends = {
        num_system: SnapshotKind.SYSTEM_PROMPT if num_system else SnapshotKind.TURN,
        len(chat.messages) - 1: SnapshotKind.TURN,
    }
    marks: dict[int, SnapshotKind] = {}
    for num_kept, kind in sorted(ends.items()):
        try:
            kept = replace(chat, messages=chat.messages[:num_kept])
            # Two: what the prompt says itself may begin like one of them.
            others = _next_rendered(template, kept, _NEXT_WORDS[:2])
        except TemplateError:
            continue  # one that refuses such a conversation, as some do
        num_chars = min(_num_common(text, other) for other in others)
        if num_chars:
            marks.setdefault(num_chars, kind)
    return tuple(Mark(*each) for each in sorted(marks.items()))


def _next_texts(fmt: PromptFormat, said: Conversation) -> list[str]:
    """The prompts of a conversation that goes on, for different things said next."""
    role: Role = "tool" if said.messages and said.messages[-1].tool_calls else "user"
    return [
        render_chat(fmt, [*said.messages, Message(role, word)], think=said.think, tools=said.tools)
        for word in _NEXT_WORDS
    ]


def _read_message(message: schemas.Message) -> Message:
    role: Any = message.role.lower()
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise ApiError(400, f"invalid role: {go_quote(message.role)} (must be one of {known})")
    calls = tuple(map(called, message.tool_calls))
    said = (message.content, message.thinking)
    return Message(cast(Role, role), *said, calls, message.tool_name, message.tool_call_id)


def _text(parts: Sequence[PromptPart]) -> str:
    return "".join(part.text for part in parts)


def _marks(fmt: PromptFormat, parts: Sequence[PromptPart]) -> tuple[Mark, ...]:
    """The end of the system messages, and of every turn."""
    marks: list[Mark] = []
    num_chars = 0
    is_system = True
    for text, is_reply in parts:
        num_chars += len(text)
        is_system = is_system and text.startswith(fmt.system)
        if text.endswith(fmt.separator) and not is_reply:
            kind = SnapshotKind.SYSTEM_PROMPT if is_system else SnapshotKind.TURN
            marks.append(Mark(num_chars, kind))
    return tuple(marks)


def _num_common(text: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if text[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
