"""`/v1/messages`, by Anthropic's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.tools.api_clients import (
    WEATHER_DESCRIPTION,
    WEATHER_NAME,
    WEATHER_PARAMETERS,
    anthropic_client,
)
from tests.tools.running_server import DEMO, ENDLESS, RunningServer, needs_demo

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
SUM: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
GREEDY = {"temperature": 0}  # the newest of the clients have no name for it
NO_THOUGHT: Any = {"type": "disabled"}
WEATHER: Any = {
    "name": WEATHER_NAME,
    "description": WEATHER_DESCRIPTION,
    "input_schema": WEATHER_PARAMETERS,
}


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic_client(server) as client:
        yield client


@needs_demo
def test_a_stream_with_a_thought(api: anthropic.Anthropic) -> None:
    body: Any = {
        "model": DEMO,
        "messages": SUM,
        "extra_body": GREEDY,
        "max_tokens": 200,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    with api.messages.stream(**body) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    wire = [kind for kind in dict.fromkeys(kinds) if kind not in ("thinking", "text")]
    assert wire == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    thought, text = final.content
    assert thought.type == "thinking"
    assert text.type == "text"
    assert thought.thinking
    assert "42" in text.text
    assert (final.stop_reason, final.stop_sequence) == ("end_turn", None)
    whole: Any = api.messages.create(**body)
    # Whoever asks again reads nothing again, and is told so.
    again, same = whole.content
    assert (again.thinking, same.text) == (thought.thinking, text.text)
    assert whole.usage.cache_read_input_tokens
    assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens == (
        final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    )


@needs_demo
@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_is_called_and_its_result_read(api: anthropic.Anthropic, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    body: Any = {
        "model": DEMO,
        "tools": [WEATHER],
        "extra_body": GREEDY,
        "max_tokens": 200,
        "thinking": NO_THOUGHT,
    }
    if stream:
        with api.messages.stream(messages=messages, **body) as events:
            answer: Any = events.get_final_message()
    else:
        answer = api.messages.create(messages=messages, **body)
    assert answer.stop_reason == "tool_use"
    (call,) = answer.content
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})

    result = {"type": "tool_result", "tool_use_id": call.id}
    answers = []
    for content in ('{"sky": "sunny"}', [{"type": "text", "text": '{"sky": "sunny"}'}]):
        turns = [
            *messages,
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [result | {"content": content}]},
        ]
        answers.append(api.messages.create(messages=turns, **body))
    assert answers[0].content == answers[1].content
    assert answers[0].content[0].type == "text"
    assert answers[0].stop_reason == "end_turn"


@needs_demo
def test_tokens_are_counted_as_they_are_read(api: anthropic.Anthropic) -> None:
    body: Any = {
        "model": DEMO,
        "messages": SUM,
        "system": "Be kind.",
        "tools": [WEATHER],
        "thinking": NO_THOUGHT,
    }
    count = api.messages.count_tokens(**body).input_tokens
    usage = api.messages.create(max_tokens=2, **body).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    with pytest.raises(anthropic.NotFoundError):
        api.messages.count_tokens(**body | {"model": "nope"})


def test_models_are_listed_and_found(api: anthropic.Anthropic) -> None:
    assert {f"{DEMO}:latest", f"{ENDLESS}:latest"} <= {each.id for each in api.models.list()}
    assert api.models.retrieve(ENDLESS).id == ENDLESS


def test_blocks_and_strings_are_the_same_prompt(server: RunningServer) -> None:
    body = {"model": ENDLESS, "temperature": 0, "max_tokens": 12}
    blocks = [{"type": "text", "text": each} for each in ("Hel", "lo!")]
    kind = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind.", "cache_control": {}}]
    answers = [
        server.post("/v1/messages", system=system, messages=messages, **body).json()
        for system, messages in (
            ("Be kind.", HELLO),
            (kind, [{"role": "user", "content": blocks}]),
        )
    ]
    assert answers[0]["content"] == answers[1]["content"]
    options = {"temperature": 0, "num_predict": 12}
    chat = [{"role": "system", "content": "Be kind."}, *HELLO]
    theirs = server.answer("/api/chat", model=ENDLESS, messages=chat, options=options)
    assert answers[0]["content"] == [{"type": "text", "text": theirs["message"]["content"]}]
    assert answers[0]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_sequence_is_named(api: anthropic.Anthropic, stream: bool) -> None:
    body: Any = {"model": ENDLESS, "messages": HELLO, "max_tokens": 40, "extra_body": GREEDY}
    first: Any = api.messages.create(**body).content[0]
    stop = first.text[5:7]
    stopped: Any = body | {"stop_sequences": ["\x00never", stop]}
    if stream:
        with api.messages.stream(**stopped) as events:
            answer: Any = events.get_final_message()
    else:
        answer = api.messages.create(**stopped)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == first.text[: first.text.index(stop)]


def test_a_model_that_cannot_think_is_not_asked_to(api: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    answer = api.messages.create(model=ENDLESS, messages=HELLO, max_tokens=5, thinking=thinking)
    assert all(block.type == "text" for block in answer.content)


def test_errors_are_those_that_the_client_knows(
    server: RunningServer, api: anthropic.Anthropic
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
        api.messages.create(model="nope", messages=HELLO, max_tokens=5)
    with pytest.raises(anthropic.BadRequestError, match="messages is required"):
        api.messages.create(model=DEMO, messages=[], max_tokens=5, stream=True)
    answer = server.post("/v1/messages", model=DEMO, messages=HELLO)
    assert answer.status_code == 400
    error = answer.json()
    assert list(error) == ["type", "error", "request_id"]
    assert error["error"] == {
        "type": "invalid_request_error",
        "message": "max_tokens is required and must be positive",
    }
    assert error["request_id"].startswith("req_")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": ""}, "model is required"),
        ({"messages": [{"role": "user"}]}, "content must be a string or a list of blocks"),
        ({"messages": [{"role": "user", "content": []}]}, "messages have no content"),
        ({"messages": [{"role": "boss", "content": "x"}]}, 'invalid role: "boss"'),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]},
            "tool_use block missing required 'id' field",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "invalid image source",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "base64", "data": ""}}],
                    }
                ]
            },
            "does not support vision",
        ),
        (
            {"tools": [{"name": "f", "input_schema": {"properties": 3}}]},
            'invalid input_schema for tool "f"',
        ),
        ({"max_tokens": "5"}, "MessagesRequest.max_tokens of type int"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_what_is_wrong_is_named(server: RunningServer, body: dict[str, Any], message: str) -> None:
    usual = {"model": ENDLESS, "max_tokens": 5, "messages": HELLO}
    response = server.post("/v1/messages", **usual | body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
