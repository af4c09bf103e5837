"""What a request adds to a history, message by message."""

from __future__ import annotations

import json

import pytest

from server.sessions.history import continued, message_text
from server.wire.schemas import Message, ToolCall, ToolCallFunction


def messages(text: str) -> list[Message]:
    """`s1 u2 a3`: system, user and assistant saying 1, 2 and 3. t: a tool's result, c: a call."""
    return [_message(word[0], word[1:]) for word in text.split()]


def _message(kind: str, said: str) -> Message:
    if kind == "c":
        function = ToolCallFunction(name="f", arguments={"x": said})
        return Message(role="assistant", tool_calls=[ToolCall(function=function)])
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return Message(role=roles[kind], content=said)


@pytest.mark.parametrize(
    ("history", "sent", "expected"),
    [
        # What is new is added.
        ("", "s1 u2", "s1 u2"),
        ("u1 a1", "u2", "u1 a1 u2"),
        ("s1 u1 a1", "u2", "s1 u1 a1 u2"),
        ("s1 u1 a1 u2 a2", "u3 u4", "s1 u1 a1 u2 a2 u3 u4"),
        ("u1 c1", "t1", "u1 c1 t1"),
        ("u1 a1", "s2 u2", "u1 a1 s2 u2"),
        ("u1 a1", "u2 a2 u3", "u1 a1 u2 a2 u3"),  # a turn that was cut off, and the next
        ("u1 a1", "u2 a2", "u1 a1 u2 a2"),  # the beginning of a reply
        # The same once more is new, too.
        ("u1 a1", "u1", "u1 a1 u1"),
        ("s1 u1 a1", "u1", "s1 u1 a1 u1"),
        ("u1", "u1", "u1 u1"),
        ("u1 a1", "u1 u1", "u1 a1 u1 u1"),
        ("u1 a1", "u1 a9", "u1 a1 u1 a9"),
        # What clients repeat is not.
        ("s1 u1 a1", "s1 u2", "s1 u1 a1 u2"),
        ("s1 s2 u1 a1", "s1 s2 u2", "s1 s2 u1 a1 u2"),
        ("s1 u1 a1", "s1 u1", "s1 u1 a1 u1"),
        ("s1 u1 a1", "s1", "s1 u1 a1 s1"),
        ("u1 c1", "c1 t1", "u1 c1 t1"),
        ("u1 c1", "c2 t1", "u1 c1 c2 t1"),
        ("u1 a1", "a1", "u1 a1"),  # the reply is to go on
        # The whole chat takes the place of what there was.
        ("u1 a1", "u1 a1 u2", "u1 a1 u2"),
        ("s1 u1 a1", "s1 u1 a1 u2", "s1 u1 a1 u2"),
        ("s1 u1 a1", "s1 u1 a1", "s1 u1 a1"),
        ("s1 u1 a1", "s9 u1 a1 u2", "s9 u1 a1 u2"),
        ("s1 u1 a1", "u1 a1 u2", "u1 a1 u2"),
        ("u1 a1", "s1 u1 a1 u2", "s1 u1 a1 u2"),
        ("s1 u1 a1 u2 a2 u3 a3", "s1 u1 a1 u2", "s1 u1 a1 u2"),
        ("s1 u1 a1 u2 a2 u3 a3", "s1 u1 a1 u9", "s1 u1 a1 u9"),
        ("u1 a1 u2 a2", "u1 a9 u2", "u1 a9 u2"),
        ("u1 a1", "u1 a1 u2 a2", "u1 a1 u2 a2"),
        ("u1 c1", "u1 c1 t1", "u1 c1 t1"),
    ],
)
def test_new_messages_and_whole_chats(history: str, sent: str, expected: str) -> None:
    assert continued(messages(history), messages(sent)) == messages(expected)


def test_what_a_prompt_shows_alike_is_the_same_message() -> None:
    history = [
        Message(role="user", content="one\ntwo"),
        Message(role="assistant", content=" yes ", thinking="well"),
    ]
    sent = [
        Message(role="USER", content=" one\r\n\r\ntwo \n"),
        Message(role="assistant", content="yes"),
        Message(role="user", content="three"),
    ]
    assert continued(history, sent) == [*history, sent[2]]
    other = [Message(role="user", content="one\n two"), *sent[1:]]
    assert continued(history, other) == [*history, *other]


def test_a_message_is_stored_as_it_was_sent() -> None:
    whole = {
        "role": "assistant",
        "content": 'ü "x"\n',
        "thinking": "t",
        "tool_calls": [
            {"id": "call_1", "function": {"index": 1, "name": "f", "arguments": {"b": 1, "a": [2]}}}
        ],
        "tool_name": "n",
        "tool_call_id": "i",
    }  # fmt: skip
    assert json.loads(message_text(Message.model_validate(whole))) == whole
    text = message_text(Message.model_validate({**whole, "role": "Assistant"}))
    assert message_text(Message.model_validate_json(text)) == text
    assert message_text(messages("u1")[0]) == '{"role":"user","content":"1"}'
