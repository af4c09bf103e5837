"""Messages and tools as Ollama hands them to a template: Go's structs with Ollama's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rwkv_core.chat.messages import Message, Think, ToolCall
from server.go_template import JsonList, JsonMap, OneOrMore, Record, TemplateError


def think_values(think: Think | None) -> dict[str, Any]:
    """Ollama calls plain thinking a medium level."""
    levels = {None: "", Think.OFF: "", Think.ON: "medium"}
    return {
        "Think": think not in (None, Think.OFF),
        "ThinkLevel": levels.get(think, think.value if think else ""),
        "IsThinkSet": think is not None,
    }


def collated(messages: Iterable[Message]) -> tuple[str, list[Message]]:
    """All system texts in one, and the messages; neighbours of one role become one message."""
    systems: list[str] = []
    merged: list[Message] = []
    for message in messages:
        if message.role == "system":
            systems.append(message.content)
        if merged and merged[-1].role == message.role and message.role != "tool":
            last = merged[-1]
            merged[-1] = last._replace(
                content=f"{last.content}\n\n{message.content}",
                tool_calls=(*last.tool_calls, *message.tool_calls),
            )
        else:
            merged.append(message)
    return "\n\n".join(systems), merged


def message_value(message: Message) -> Record:
    return Record(
        "*template.templateMessage",
        {
            "Role": message.role,
            "Content": message.content,
            "Thinking": message.thinking,
            "Images": [],
            "ToolCalls": [_call_value(*each) for each in enumerate(message.tool_calls)],
            "ToolName": message.tool_name,
            "ToolCallID": message.tool_call_id,
        },
    )


def tools_value(tools: Sequence[Mapping[str, Any]]) -> JsonList:
    """Raises TemplateError for schemas nested too deep."""
    try:
        return JsonList(_tool_value(tool) for tool in tools)
    except RecursionError:
        raise TemplateError("a tool's parameters are nested too deep") from None


def _call_value(index: int, call: ToolCall) -> Record:
    try:
        arguments = JsonMap(_as_go(dict(call.arguments)))
    except RecursionError:
        raise TemplateError(f"the arguments of {call.name} are nested too deep") from None
    function = {"Index": index, "Name": call.name, "Arguments": arguments}
    return Record(
        "template.templateToolCall",
        {"ID": call.id, "Function": Record("template.templateToolCallFunction", function)},
    )


def _as_go(value: Any) -> Any:
    """JSON as Go reads it where no type is known: every number is a float."""
    if isinstance(value, Mapping):
        return {key: _as_go(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_go(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _tool_value(tool: Mapping[str, Any]) -> Record:
    function = tool.get("function") or {}
    parameters = function.get("parameters") or {}
    items, defs = _as_go(parameters.get("items")), _as_go(parameters.get("$defs"))
    properties = _properties(parameters.get("properties") or {})
    json_parameters = {
        "type": parameters.get("type", ""),
        **_present({"$defs": defs, "items": items, "required": parameters.get("required")}),
        "properties": properties,
    }
    parameter_record = Record(
        "template.templateToolFunctionParameters",
        {
            "Type": parameters.get("type", ""),
            "Defs": defs,
            "Items": items,
            "Required": parameters.get("required") or [],
            "Properties": properties,
        },
        json_parameters,
    )
    names = {"name": function.get("name", ""), "description": function.get("description", "")}
    function_record = Record(
        "template.templateToolFunction",
        {
            "Name": names["name"],
            "Description": names["description"],
            "Parameters": parameter_record,
        },
        {**names, "parameters": parameter_record},
    )
    kind, tool_items = tool.get("type", ""), _as_go(tool.get("items"))
    return Record(
        "template.templateTool",
        {"Type": kind, "Items": tool_items, "Function": function_record},
        {"type": kind, **_present({"items": tool_items}), "function": function_record},
        prints_json=True,
    )


def _properties(schemas: Mapping[str, Any]) -> JsonMap:
    return JsonMap({name: _property(schema) for name, schema in schemas.items()})


def _property(schema: Mapping[str, Any]) -> Record:
    """One JSON schema."""
    kind = schema.get("type") or []
    choices = [_property(each) for each in schema.get("anyOf") or []]
    items, enum = _as_go(schema.get("items")), _as_go(schema.get("enum") or [])
    properties = _properties(schema.get("properties") or {})
    required = schema.get("required") or []
    description = schema.get("description", "")
    return Record(
        "api.ToolProperty",
        {
            "AnyOf": choices,
            "Type": OneOrMore([kind] if isinstance(kind, str) else kind),
            "Items": items,
            "Description": description,
            "Enum": enum,
            "Properties": properties,
            "Required": required,
        },
        _present(
            {
                "anyOf": choices,
                "type": kind,
                "items": items,
                "description": description,
                "enum": enum,
                "properties": properties,
                "required": required,
            }
        ),
    )


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what Go's `omitempty` leaves out."""
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}
