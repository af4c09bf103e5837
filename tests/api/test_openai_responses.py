"""`/v1/responses`, by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.tools.api_clients import (
    WEATHER_DESCRIPTION,
    WEATHER_NAME,
    WEATHER_PARAMETERS,
    openai_client,
)
from tests.tools.running_server import DEMO, ENDLESS, RunningServer, needs_demo

WEATHER: Any = {
    "type": "function",
    "name": WEATHER_NAME,
    "description": WEATHER_DESCRIPTION,
    "strict": None,
    "parameters": WEATHER_PARAMETERS,
}


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai_client(server) as client:
        yield client


def rendered(server: RunningServer, **body: Any) -> str:
    """The prompt of the chat that a request of `/v1/responses` is: found by its reply.

    A model that is never sure writes another text to another prompt.
    """
    answer = server.post(
        "/v1/responses", model=ENDLESS, temperature=0, max_output_tokens=16, **body
    ).json()
    (item,) = answer["output"]
    return f"{item['content'][0]['text']} after {answer['usage']['input_tokens']}"


def as_chat(server: RunningServer, *messages: dict[str, str]) -> str:
    options = {"temperature": 0, "num_predict": 16}
    answer = server.answer("/api/chat", model=ENDLESS, messages=messages, options=options)
    return f"{answer['message']['content']} after {answer['prompt_eval_count']}"


@needs_demo
def test_a_stream_with_a_thought(api: openai.OpenAI) -> None:
    body: Any = {"model": DEMO, "input": "What is 17 + 25?", "temperature": 0}
    with api.responses.stream(**body) as stream:
        events: list[Any] = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    thought, message = final.output
    assert thought.type == "reasoning"
    assert message.type == "message"
    deltas = {
        kind: "".join(event.delta for event in events if event.type == kind)
        for kind in ("response.reasoning_summary_text.delta", "response.output_text.delta")
    }
    assert list(deltas.values()) == [thought.summary[0].text, final.output_text]
    assert "42" in final.output_text
    order = list(dict.fromkeys(kinds))
    assert order[2:] == [
        "response.output_item.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.output_item.done",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.completed",
    ]
    whole = api.responses.create(**body)
    assert whole.output_text == final.output_text
    assert whole.status == "completed"
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens > 0


@needs_demo
@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_is_called_and_its_result_read(api: openai.OpenAI, stream: bool) -> None:
    items: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    body: Any = {
        "model": DEMO,
        "tools": [WEATHER, {"type": "web_search"}],
        "temperature": 0,
        "reasoning": {"effort": "none"},
    }
    if stream:
        with api.responses.stream(input=items, **body) as events:
            response: Any = events.get_final_response()
    else:
        response = api.responses.create(input=items, **body)
    (call,) = response.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments) == {"city": "Paris"}
    items += [
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "sunny"}'},
    ]
    reply = api.responses.create(input=items, **body)
    assert [item.type for item in reply.output] == ["message"]
    assert reply.output_text


def test_a_response_that_was_cut_says_so(server: RunningServer) -> None:
    body = {"model": ENDLESS, "input": "Hello!", "temperature": 0, "max_output_tokens": 5}
    answer = server.post("/v1/responses", **body).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["usage"]["output_tokens"] == 5
    assert answer["max_output_tokens"] == 5


def test_items_become_messages(server: RunningServer) -> None:
    hello = {"role": "user", "content": "Hello!"}
    plain = as_chat(server, hello)
    assert rendered(server, input="Hello!") == plain
    assert rendered(server, input=[hello]) == plain
    parts = [{"type": "input_text", "text": "Hel"}, {"type": "input_text", "text": "lo!"}]
    assert rendered(server, input=[{"type": "message", "role": "user", "content": parts}]) == plain

    system = {"role": "system", "content": "Be kind."}
    instructed = as_chat(server, system, hello)
    assert instructed != plain
    assert rendered(server, input="Hello!", instructions="Be kind.") == instructed
    developer = {"role": "developer", "content": "Be kind."}
    assert rendered(server, input=[developer, hello]) == instructed

    said = {"role": "assistant", "content": "Hi."}
    output = [{"type": "output_text", "text": "Hi."}]
    items = [
        hello,
        {"type": "reasoning", "summary": [], "encrypted_content": "a thought"},
        {"type": "message", "role": "assistant", "content": output},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        hello,
    ]
    assert rendered(server, input=items) == as_chat(server, hello, said, hello)


def test_a_namespace_is_the_functions_in_it(server: RunningServer) -> None:
    nested = {"type": "namespace", "name": "weather", "tools": [WEATHER]}
    answer = server.post("/v1/responses", model=ENDLESS, input="x", tools=[nested])
    # ENDLESS knows no tools: so much of them has been read.
    assert answer.status_code == 400
    assert "does not support tools" in answer.json()["error"]["message"]
    for _ in range(20):
        nested = {"type": "namespace", "name": "weather", "tools": [nested]}
    answer = server.post("/v1/responses", model=ENDLESS, input="x", tools=[nested])
    assert answer.status_code == 400
    assert "namespaces inside one another" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "input is required"),
        ({"input": ""}, "input is required"),
        ({"input": 3}, "input must be a string or array"),
        ({"input": [3]}, "input[0]: an input item must be an object"),
        ({"input": [{}]}, "input[0]: input item missing required 'type' field"),
        ({"input": [{"type": "x"}]}, 'input[0]: unknown input item type: "x"'),
        (
            {"input": [{"role": "user", "content": [{"type": "x"}]}]},
            "input[0]: content[0]: unknown content type: x",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "file inputs are not currently supported",
        ),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"input": "x", "conversation": "conv_1"}, "conversation is not supported"),
        ({"input": "x", "reasoning": {"effort": "some"}}, "invalid reasoning value"),
        ({"input": "x", "stream": "yes"}, "ResponsesRequest.stream of type bool"),
    ],
)
def test_what_is_wrong_is_named(server: RunningServer, body: dict[str, Any], message: str) -> None:
    response = server.post("/v1/responses", model=ENDLESS, **body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
