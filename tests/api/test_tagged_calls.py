"""Calls of tools found by the tag that a template shows."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.replies.tagged_calls import TaggedCallParser

CALL = '{"name": "add", "arguments": {"a": 1, "b": "}{\\""}}'
ADD = ("add", {"a": 1, "b": '}{"'})


def parsed(tag: str, text: str, size: int) -> tuple[str, list[tuple[str, object]]]:
    parser = TaggedCallParser(tag, ["add", "sub"])
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    answers = [parser.push(piece) for piece in pieces] + [parser.flush()]
    calls = [numbered for _, found in answers for numbered in found]
    assert [numbered.index for numbered in calls] == list(range(len(calls)))
    content = "".join(content for content, _ in answers)
    return content, [(each.call.name, dict(each.call.arguments)) for each in calls]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("tag", "text", "content", "calls"),
    [
        ("<tool_call>", f"Well.<tool_call>\n{CALL}\n</tool_call>", "Well.", [ADD]),
        (
            "<tool_call>",
            f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>",
            "",
            [ADD] * 2,
        ),
        ("[CALLS]", f"[CALLS][{CALL}, {CALL}]", "", [ADD] * 2),
        ("<tool_call>", "<tool_call>{oh no}", "<tool_call>{oh no}", []),
        ("<tool_call>", '<tool_call>{"name": "rm"}', '<tool_call>{"name": "rm"}', []),
        ("<tool_call>", "a <b> <tool", "a <b> <tool", []),
        ("{", CALL, "", [ADD]),
        ("{", f"  {CALL}", "  ", [ADD]),
        ("{", f"See {CALL}", f"See {CALL}", []),
        ("{", '{"x": 1}', '{"x": 1}', []),
        ("{", '{"function": {"name": "sub", "parameters": {}}}', "", [("sub", {})]),
        ("{", '{"name": "sub", "arguments": "{\\"a\\": 2}"}', "", [("sub", {"a": 2})]),
        ("{", '{"name": "sub"', '{"name": "sub"', []),
    ],
)
def test_replies(tag: str, text: str, content: str, calls: list[object], size: int) -> None:
    assert parsed(tag, text, size) == (content, calls)


@given(st.text('{}[]"\\<tool_call>: ,1n', max_size=60), st.sampled_from(["{", "<tool_call>"]))
def test_any_text_comes_through_when_there_is_no_call(text: str, tag: str) -> None:
    for size in (1, 5, 100):
        assert parsed(tag, text, size) == (text, [])


def test_a_long_call_takes_linear_time() -> None:
    text = json.dumps({"name": "add", "arguments": {"a": "x" * 200_000}})
    start = time.thread_time()
    assert parsed("{", text, 4)[1]
    assert time.thread_time() - start < 5
