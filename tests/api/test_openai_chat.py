"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`, by OpenAI's own client."""

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

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
SUM: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": WEATHER_NAME,
        "description": WEATHER_DESCRIPTION,
        "parameters": WEATHER_PARAMETERS,
    },
}


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai_client(server) as client:
        yield client


def data_lines(text: str) -> list[str]:
    """What stands behind `data: ` in a stream that has nothing else."""
    *events, last = text.split("\n\n")
    assert last == ""
    assert all(each.startswith("data: ") and "\n" not in each for each in events)
    return [each.removeprefix("data: ") for each in events]


def chunks_of(server: RunningServer, **body: Any) -> list[dict[str, Any]]:
    response = server.post("/v1/chat/completions", stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, end = data_lines(response.text)
    assert end == "[DONE]"
    return [json.loads(each) for each in chunks]


def test_the_chunks_of_a_stream(server: RunningServer) -> None:
    body = {"model": ENDLESS, "messages": HELLO, "temperature": 0, "max_tokens": 8}
    *chunks, last = chunks_of(server, **body)
    for chunk in (*chunks, last):
        assert list(chunk) == [
            "id", "object", "created", "model", "system_fingerprint", "choices"
        ]  # fmt: skip
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["system_fingerprint"] == "fp_ollama"
        assert chunk["model"] == ENDLESS
    assert len({(chunk["id"], chunk["created"]) for chunk in (*chunks, last)}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert list(deltas[0]) == ["role", "content"]
    assert all(list(delta) == ["content"] for delta in deltas[1:])
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]

    whole = server.post("/v1/chat/completions", **body).json()
    assert whole["object"] == "chat.completion"
    (choice,) = whole["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "".join(delta["content"] for delta in deltas),
    }
    assert choice["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 8


@needs_demo
def test_a_streamed_chat_with_a_thought_and_its_usage(api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(
        model=DEMO,
        messages=SUM,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last, usage_chunk = list(stream)
    thought = [getattr(chunk.choices[0].delta, "reasoning", None) or "" for chunk in chunks]
    content = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "42" in "".join(content)
    assert max(i for i, text in enumerate(thought) if text) < min(
        i for i, text in enumerate(content) if text
    )
    assert last.choices[0].finish_reason == "stop"
    assert usage_chunk.choices == []
    assert usage_chunk.usage is not None
    assert usage_chunk.usage.total_tokens == (
        usage_chunk.usage.prompt_tokens + usage_chunk.usage.completion_tokens
    )
    whole = api.chat.completions.create(model=DEMO, messages=SUM, temperature=0)
    assert whole.choices[0].message.content == "".join(content)
    assert whole.choices[0].message.model_extra == {"reasoning": "".join(thought)}


@needs_demo
@pytest.mark.parametrize("body", [{"reasoning_effort": "none"}, {"reasoning": {"effort": "none"}}])
def test_no_effort_is_no_thought(server: RunningServer, body: dict[str, Any]) -> None:
    chat = {"model": DEMO, "messages": SUM, "temperature": 0}
    answer = server.post("/v1/chat/completions", **chat, **body).json()
    assert list(answer["choices"][0]["message"]) == ["role", "content"]


@needs_demo
@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_is_called_and_its_result_read(api: openai.OpenAI, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    body: Any = {"model": DEMO, "tools": [WEATHER], "temperature": 0, "reasoning_effort": "none"}
    if stream:
        with api.chat.completions.stream(messages=messages, **body) as events:
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = api.chat.completions.create(messages=messages, **body).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}

    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": call.function.arguments,
                    },
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "sunny"}'},
    ]
    reply = api.chat.completions.create(messages=messages, **body).choices[0]
    assert reply.finish_reason == "stop"
    assert reply.message.tool_calls is None
    assert reply.message.content


@needs_demo
def test_the_second_turn_reads_only_what_is_new(api: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "My name is Anna. Remember it well."}]
    body: Any = {"model": DEMO, "temperature": 0, "reasoning_effort": "none"}
    first = api.chat.completions.create(messages=messages, **body)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "What is my name?"},
    ]
    usage = api.chat.completions.create(messages=messages, **body).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    num_cached = usage.prompt_tokens_details.cached_tokens
    assert first.usage is not None
    assert num_cached is not None
    assert first.usage.prompt_tokens <= num_cached < usage.prompt_tokens


def test_parts_developers_and_limits_mean_what_they_say(server: RunningServer) -> None:
    """The same prompt, hence the same reply, however OpenAI's clients put it."""
    plain = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a\nb"},
    ]
    parts = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": each} for each in "ab"]},
    ]
    body = {"model": ENDLESS, "temperature": 0}
    answers = [
        server.post("/v1/chat/completions", messages=messages, **body, **limit).json()
        for messages, limit in (
            (plain, {"max_tokens": 9}),
            (parts, {"max_completion_tokens": 9}),
            (parts, {"max_tokens": 3, "max_completion_tokens": 9, "n": 2, "stop": None}),
        )
    ]
    texts = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) == 1
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {9}


def test_the_prompt_may_be_asked_for_in_place_of_a_reply(server: RunningServer) -> None:
    body = {"model": ENDLESS, "messages": HELLO, "_debug_render_only": True}
    theirs = server.answer("/api/chat", **body)["_debug_info"]
    ours = server.post("/v1/chat/completions", **body).json()
    assert ours["_debug_info"] == theirs
    assert ours["choices"][0]["message"] == {"role": "", "content": ""}
    assert ours["usage"]["completion_tokens"] == 0


def test_sampling_is_openais_unless_the_request_says(server: RunningServer) -> None:
    chat = {"messages": HELLO, "model": ENDLESS}
    seeded = {"seed": 7, "max_tokens": 12}
    ours = server.post("/v1/chat/completions", **chat, **seeded).json()["choices"][0]
    options = {"temperature": 1.0, "top_p": 1.0, "seed": 7, "num_predict": 12}
    theirs = server.answer("/api/chat", **chat, options=options)
    assert ours["message"]["content"] == theirs["message"]["content"]


def test_a_stop_is_a_string_or_several(server: RunningServer) -> None:
    body: dict[str, Any] = {"model": ENDLESS, "messages": HELLO, "temperature": 0, "max_tokens": 40}
    text = server.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]
    stop = text[5:7]
    for given in (stop, ["\x00never", stop]):
        (choice,) = server.post("/v1/chat/completions", stop=given, **body).json()["choices"]
        assert choice["message"]["content"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"


@needs_demo
@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_in_json_follows_its_schema(api: openai.OpenAI, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 9}, "sunny": {"type": "boolean"}},
        "required": ["city", "sunny"],
        "additionalProperties": False,
    }
    body: Any = {
        "model": DEMO,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "temperature": 0,
    }
    if stream:
        chunks = api.chat.completions.create(stream=True, **body)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = api.chat.completions.create(**body).choices[0].message.content or ""
    value = json.loads(text)
    assert set(value) == {"city", "sunny"}
    assert isinstance(value["sunny"], bool)
    with pytest.raises(openai.BadRequestError, match="format"):
        wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": 3}}
        api.chat.completions.create(**body | {"response_format": wrong})


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_of_every_token(api: openai.OpenAI, stream: bool) -> None:
    body: Any = {
        "model": ENDLESS,
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 6,
        "logprobs": True,
        "top_logprobs": 2,
    }
    choices: list[Any] = []
    if stream:
        choices = [chunk.choices[0] for chunk in api.chat.completions.create(stream=True, **body)]
    else:
        choices = [api.chat.completions.create(**body).choices[0]]
    tokens = [token for each in choices if each.logprobs for token in each.logprobs.content]
    assert len(tokens) == 6
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].bytes == token.bytes  # the likeliest was taken


def test_models_are_listed_and_found(api: openai.OpenAI) -> None:
    models = {model.id: model for model in api.models.list()}
    assert {f"{DEMO}:latest", f"{ENDLESS}:latest"} <= set(models)
    entry = models[f"{DEMO}:latest"]
    assert (entry.object, entry.owned_by) == ("model", "library")
    found = api.models.retrieve(DEMO)
    assert (found.id, found.created) == (DEMO, entry.created)
    with pytest.raises(openai.NotFoundError, match="model 'some/other' not found"):
        api.models.retrieve("some/other")


def test_errors_are_those_that_the_client_knows(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.chat.completions.create(model="nope", messages=HELLO)
    assert caught.value.type == "not_found_error"
    assert caught.value.message.endswith("model 'nope' not found")
    with pytest.raises(openai.BadRequestError, match="too short - 'messages'") as refused:
        api.chat.completions.create(model=DEMO, messages=[], stream=True)
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="does not support thinking"):
        api.chat.completions.create(model=ENDLESS, messages=HELLO, reasoning_effort="high")
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        api.chat.completions.create(model=ENDLESS, messages=HELLO, tools=[WEATHER])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": [{"role": "user"}]}, "invalid message content type: null"),
        ({"messages": [{"role": "user", "content": 3}]}, "invalid message content type: int"),
        ({"messages": [{"role": "user", "content": [3]}]}, "invalid message format"),
        ({"messages": [{"role": "boss", "content": ""}]}, 'invalid role: "boss"'),
        ({"messages": HELLO, "reasoning_effort": "some"}, 'invalid reasoning value: "some"'),
        ({"messages": HELLO, "temperature": "hot"}, "ChatCompletionRequest.temperature of type"),
        ({"messages": "hi"}, "ChatCompletionRequest.messages of type []openai.Message"),
        ({"messages": HELLO, "top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "["}}]}]},
            "invalid tool call arguments",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "invalid image input",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "data:;base64,aGk="}}
                        ],
                    }
                ]
            },
            "does not support vision",
        ),
    ],
)
def test_what_is_wrong_is_named(server: RunningServer, body: dict[str, Any], message: str) -> None:
    for stream in (True, False):
        response = server.post("/v1/chat/completions", model=ENDLESS, stream=stream, **body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert message in error["message"]


def test_a_completion(api: openai.OpenAI) -> None:
    body: Any = {"model": ENDLESS, "prompt": "Once", "temperature": 0, "max_tokens": 8}
    whole = api.completions.create(**body)
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    *chunks, last, usage = list(
        api.completions.create(**body, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert last.choices[0].finish_reason == "length"
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 8
    with pytest.raises(openai.BadRequestError, match="does not support insert"):
        api.completions.create(**body, suffix="end")
    with pytest.raises(openai.NotFoundError):
        api.completions.create(**body | {"model": "nope"})


def test_an_empty_completion_loads_the_model(server: RunningServer) -> None:
    server.unload_all()
    answer = server.post("/v1/completions", model=ENDLESS).json()
    assert answer["choices"] == [{"text": "", "index": 0, "finish_reason": "load"}]
    assert [loaded.stored.name.model for loaded in server.context.manager.loaded()] == [ENDLESS]


def test_an_unknown_path_is_an_error_of_this_api(server: RunningServer) -> None:
    response = server.http.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "404 page not found"
