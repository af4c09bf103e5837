"""What a request's messages mean in a chat that has a history already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rwkv_core.chat.render import clean_text
from server.wire.schemas import Message, ToolCall


def continued(history: Sequence[Message], sent: Sequence[Message]) -> list[Message]:
    """The chat after `history` once `sent` has been said; `sent` has at least one message.

    What was sent is new, and is added. It is the whole chat instead if it begins with the first
    thing said in `history`, system messages aside, and holds a reply that more follows, or if it
    is all of `history` up to a reply that is to go on: no client sends that as something new.
    Messages that are the same as in `history`, as far as a prompt shows, are taken from there.
    """
    if _is_whole_chat(history, sent):
        num_common = _num_common(history, sent)
        return [*history[:num_common], *sent[num_common:]]
    return [*history, *_without_repeats(history, sent)]


def message_json(message: Message) -> dict[str, Any]:
    """A message as it goes over the wire, without what is empty."""
    value: dict[str, Any] = {"role": message.role.lower(), "content": message.content}
    if message.thinking:
        value["thinking"] = message.thinking
    if message.tool_calls:
        value["tool_calls"] = [_call_json(call) for call in message.tool_calls]
    if message.tool_name:
        value["tool_name"] = message.tool_name
    if message.tool_call_id:
        value["tool_call_id"] = message.tool_call_id
    return value


def message_text(message: Message) -> str:
    """A message as it is stored."""
    return json.dumps(message_json(message), ensure_ascii=False, separators=(",", ":"))


def _call_json(call: ToolCall) -> dict[str, Any]:
    function = {
        "index": call.function.index,
        "name": call.function.name,
        "arguments": call.function.arguments,
    }
    return ({"id": call.id} if call.id else {}) | {"function": function}


def _is_whole_chat(history: Sequence[Message], sent: Sequence[Message]) -> bool:
    if _num_common(history, sent) == len(history) == len(sent):
        return _role(sent[-1]) == "assistant"
    first, first_sent = _first_said(history), _first_said(sent)
    if first is None or first_sent is None or not _is_same(first, first_sent):
        return False
    return any(_role(each) == "assistant" for each in sent[:-1])


def _without_repeats(history: Sequence[Message], sent: Sequence[Message]) -> Sequence[Message]:
    """What is new in messages that clients tend to send along: the system message that the chat
    began with, the reply whose tool call is answered, the reply that is to go on.
    """
    if history and _is_same(history[-1], sent[0]) and _role(sent[0]) == "assistant":
        return sent[1:]
    num_common = _num_common(history, sent)
    num_system = 0
    while num_system < min(num_common, len(sent) - 1) and _role(sent[num_system]) == "system":
        num_system += 1
    return sent[num_system:]


def _first_said(messages: Sequence[Message]) -> Message | None:
    return next((each for each in messages if _role(each) != "system"), None)


def _num_common(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many messages two chats begin with alike."""
    count = 0
    while count < min(len(one), len(other)) and _is_same(one[count], other[count]):
        count += 1
    return count


def _is_same(one: Message, other: Message) -> bool:
    """Whether a prompt shows both alike, wherever it has them."""
    return _shown(one) == _shown(other)


def _shown(message: Message) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    role = _role(message)
    text = message.content.strip() if role == "assistant" else clean_text(message.content)
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    return role, text, calls


def _role(message: Message) -> str:
    return message.role.lower()
