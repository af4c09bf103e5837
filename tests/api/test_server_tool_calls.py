"""Calls of tools in a reply, however it is cut."""

from __future__ import annotations

import json

import pytest

from rwkv_core.chat.messages import ToolCall
from rwkv_core.chat.prompt_format import ToolFormat, choose_prompt_format
from server.replies.tool_calls import NumberedCall, ToolCallParser, offered_tool, tool_call_json
from server.wire.go_decode import decode
from server.wire.schemas import ChatRequest

CALL = ToolCall("get_weather", {"city": "Paris", "days": [1, 2]})
FENCE = f"```json\n{json.dumps({'name': CALL.name, 'arguments': CALL.arguments})}\n```"


def tool_format() -> ToolFormat:
    tools = choose_prompt_format("rwkv7-g1").tools
    assert tools is not None
    return tools


def parse(text: str, size: int) -> tuple[str, list[ToolCall]]:
    """The content and the calls of a reply that comes in pieces of `size`."""
    parser = ToolCallParser(tool_format(), ["get_weather", "clock"])
    content = ""
    calls: list[NumberedCall] = []
    for start in range(0, len(text), size):
        piece, found = parser.push(text[start : start + size])
        content += piece
        calls += found
    piece, found = parser.flush()
    calls += found
    assert [each.index for each in calls] == list(range(len(calls)))
    return content + piece, [each.call for each in calls]


@pytest.mark.parametrize(
    ("reply", "content", "calls"),
    [
        (FENCE, "", [CALL]),
        (f"{FENCE}\n", "", [CALL]),
        (f"Let me look.\n{FENCE}", "Let me look.\n", [CALL]),
        (f"{FENCE}\n{FENCE}", "", [CALL, CALL]),
        (FENCE.removesuffix("\n```"), "", [CALL]),  # cut off, but whole
        ('```json\n{"name": "clock"}\n```', "", [ToolCall("clock", {})]),
    ],
)
def test_calls_are_found(reply: str, content: str, calls: list[ToolCall]) -> None:
    for size in range(1, len(reply) + 1):
        assert parse(reply, size) == (content, calls)


@pytest.mark.parametrize(
    "reply",
    [
        "The weather is fine.",
        "Use `x` and ``y`` and ```python\nz\n```",
        '```json\n{"a": 1}\n```\nis JSON',
        '```json\n{"name": "rm", "arguments": {}}\n```',
        '```json\n{"name": "clock", "arguments": [1]}\n```',
        "```json\n{broken\n```",
        "```json\n{",
        "``",
        '{"name": "clock"}',
    ],
)
def test_what_is_no_call_stays_as_it_is(reply: str) -> None:
    for size in range(1, len(reply) + 1):
        assert parse(reply, size) == (reply, [])


def test_nothing_of_a_fence_is_given_out_before_it_is_certain() -> None:
    parser = ToolCallParser(tool_format(), ["get_weather"])
    given_out = [parser.push(char) for char in FENCE]
    assert all(text == "" for text, _ in given_out)
    assert [calls for _, calls in given_out if calls] == [[NumberedCall(0, CALL)]]


def test_a_call_on_the_wire() -> None:
    first, second = (tool_call_json(NumberedCall(index, CALL)) for index in (0, 1))
    assert first["function"] == {"index": 0, "name": CALL.name, "arguments": CALL.arguments}
    assert len(first["id"]) == len("call_") + 8
    assert first["id"] != second["id"]


def test_an_offered_tool_is_what_the_client_gave() -> None:
    function = {
        "name": "clock",
        "description": "Tell the time",
        "parameters": {
            "type": "object",
            "properties": {
                "zone": {"type": "string", "enum": ["a", "b"]},
                "when": {"type": ["string", "null"], "no_such_field": 1},
            },
            "required": ["zone"],
        },
    }
    tool = {"type": "function", "function": function}
    offered = offered_tool(decode(ChatRequest, {"tools": [tool]}).tools[0])
    parameters = function["parameters"]
    assert isinstance(parameters, dict)
    parameters["properties"]["when"].pop("no_such_field")
    assert offered == tool
