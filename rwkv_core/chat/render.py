"""From a conversation to the exact text a model reads. The one home of prompt text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rwkv_core.chat.messages import Message, Think, ToolCall
from rwkv_core.chat.prompt_format import PromptFormat, ToolFormat, ToolStyle

_NEWLINES = re.compile(r"\n+")


class PromptPart(NamedTuple):
    """A piece of the prompt; `is_reply` marks what the assistant wrote in an earlier turn."""

    text: str
    is_reply: bool = False


def render_chat(
    fmt: PromptFormat,
    messages: Sequence[Message],
    *,
    think: Think | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    force_tool_call: bool = False,
) -> str:
    """The prompt for the assistant's next turn; `think` None means ON where the format can think.

    A conversation that ends with an assistant message is continued inside that message.
    """
    parts = chat_parts(fmt, messages, think=think, tools=tools, force_tool_call=force_tool_call)
    return "".join(part.text for part in parts)


def chat_parts(
    fmt: PromptFormat,
    messages: Sequence[Message],
    *,
    think: Think | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    force_tool_call: bool = False,
) -> list[PromptPart]:
    """The prompt of `render_chat`, cut where the assistant's earlier replies begin and end."""
    suffix = _level_suffix(fmt, think)
    last_user = max((i for i, each in enumerate(messages) if each.role == "user"), default=-1)
    parts: list[PromptPart] = []
    if tools and fmt.tools and not (messages and messages[0].role == "system"):
        parts.append(PromptPart(f"{_tools_turn(fmt, fmt.tools, tools)}{fmt.separator}"))
    for i, message in enumerate(messages):
        if message.role == "assistant":
            parts.append(PromptPart(fmt.assistant))
            parts.append(PromptPart(_reply_text(fmt, message), is_reply=True))
            if i + 1 == len(messages) and not message.tool_calls:
                return parts  # the model goes on where this reply stops
            parts.append(PromptPart(fmt.separator))
            continue
        turn = _turn(fmt, message, suffix if i == last_user else "")
        parts.append(PromptPart(f"{turn}{fmt.separator}"))
        if i == 0 and message.role == "system" and tools and fmt.tools:
            parts.append(PromptPart(f"{_tools_turn(fmt, fmt.tools, tools)}{fmt.separator}"))
    parts.append(PromptPart(fmt.assistant + _opening(fmt, think, force_tool_call)))
    return parts


def clean_text(text: str) -> str:
    """System and user text as the authors clean it: no blank lines, no white space at the ends.

    A blank line would end the turn. Indentation inside the text stays.
    """
    text = text.replace("\r\n", "\n")
    if "\n\n" in text:
        text = _NEWLINES.sub("\n", text)
    return text.strip()


def format_tool_call(tools: ToolFormat, call: ToolCall) -> str:
    """A call as the model writes it, fence and all."""
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
    return f"{tools.call_open}\n{body}\n{tools.call_close}"


def _opening(fmt: PromptFormat, think: Think | None, force_tool_call: bool) -> str:
    """What the prompt writes on behalf of the assistant, after "Assistant:"."""
    if force_tool_call and fmt.tools:
        return f" {fmt.tools.call_open}"
    if fmt.thinking is None:
        return ""
    return f" {fmt.thinking.off if think is Think.OFF else fmt.thinking.on}"


def _level_suffix(fmt: PromptFormat, think: Think | None) -> str:
    return fmt.thinking.levels.get(think, "") if fmt.thinking and think else ""


def _turn(fmt: PromptFormat, message: Message, suffix: str) -> str:
    text = clean_text(message.content)
    if message.role == "tool" and fmt.tools:
        text = f"{fmt.tools.result_header}\n{text}"
    label = fmt.system if message.role == "system" else fmt.user
    return f"{label} {text}{suffix}".rstrip()


def _reply_text(fmt: PromptFormat, message: Message) -> str:
    """An earlier reply after "Assistant:": one space and the text, without its thought."""
    text = message.content.strip()
    if fmt.tools and message.tool_calls:
        calls = [format_tool_call(fmt.tools, call) for call in message.tool_calls]
        text = "\n".join([text, *calls] if text else calls)
    return f" {text}" if text else ""


def _tools_turn(fmt: PromptFormat, tools: ToolFormat, offered: Sequence[Mapping[str, Any]]) -> str:
    write = _tool_json if tools.style is ToolStyle.JSON else _tool_line
    lines = [clean_text(write(each)) for each in offered]
    return "\n".join([f"{fmt.system} {tools.header}", *lines, tools.instruction])


def _tool_json(tool: Mapping[str, Any]) -> str:
    return json.dumps(_function(tool), ensure_ascii=False)


def _tool_line(tool: Mapping[str, Any]) -> str:
    """`- name(arg: type, other?: type): description`; "?" marks what may be left out."""
    function = _function(tool)
    parameters = function.get("parameters") or {}
    required = parameters.get("required")
    arguments = ", ".join(
        f"{name}{'' if required is None or name in required else '?'}: {_type_name(schema)}"
        for name, schema in (parameters.get("properties") or {}).items()
    )
    description = " ".join(str(function.get("description") or "").split())
    line = f"- {function.get('name', '')}({arguments})"
    return f"{line}: {description}" if description else line


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Clients wrap a function as {"type": "function", "function": {…}}; a bare one is taken too."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def _type_name(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)
    kind = schema.get("type", "any")
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
