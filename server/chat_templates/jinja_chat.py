"""A conversation through the chat_template of a model file, written in Jinja."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rwkv_core.chat.messages import Message, Think
from server.chat_templates import jinja_process
from server.chat_templates.base import TemplateChat, ThinkingTags
from server.go_template import TemplateError

_TAGS = ThinkingTags("<think>", "</think>")
# What models write before a call, as far as their templates show it.
_TOOL_TAGS = ("<tool_call>", "[TOOL_CALLS]", "<|tool_call|>", "<function=")
_ANY_OBJECT = "{"


@dataclass(frozen=True)
class JinjaChatTemplate:
    """`bos` and `eos` are the tokens that begin and end a text."""

    text: str
    bos: str = ""
    eos: str = ""

    @property
    def thinking_tags(self) -> ThinkingTags | None:
        return _TAGS if all(tag in self.text for tag in _TAGS) else None

    @property
    def tool_tag(self) -> str | None:
        if "tools" not in self.text:
            return None
        return next((tag for tag in _TOOL_TAGS if tag in self.text), _ANY_OBJECT)

    @property
    def can_insert(self) -> bool:
        return False

    def render(self, chat: TemplateChat) -> str:
        is_continued = _is_open_reply(chat)
        values: dict[str, Any] = {
            "messages": [_message(message) for message in chat.messages],
            "tools": list(chat.tools) or None,
            "bos_token": self.bos,
            "eos_token": self.eos,
            "add_generation_prompt": not is_continued,
            "continue_final_message": is_continued,
        }
        if chat.think is not None:
            values["enable_thinking"] = chat.think is not Think.OFF
        text = jinja_process.PROCESS.render(self.text, values)
        return _cut_behind(text, chat.messages[-1].content) if is_continued else text

    def render_insert(self, prompt: str, suffix: str, think: Think | None) -> str:
        raise TemplateError("chat_template: it has no place for a suffix")


def _is_open_reply(chat: TemplateChat) -> bool:
    """Whether the model goes on inside the last message."""
    last = chat.messages[-1] if chat.messages else None
    return last is not None and last.role == "assistant" and not last.tool_calls


def _cut_behind(text: str, content: str) -> str:
    """The prompt up to the end of its last message: what a template writes behind it ends it."""
    content = content.strip()
    at = text.rfind(content) if content else -1
    return text[: at + len(content)] if at >= 0 else text


def _message(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        value["reasoning_content"] = message.thinking
    if message.tool_calls:
        value["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_name:
        value["name"] = message.tool_name
    if message.tool_call_id:
        value["tool_call_id"] = message.tool_call_id
    return value
