"""Every answer and event fits the types of the official clients, which themselves never check."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.tools.api_clients import WEATHER_DESCRIPTION, WEATHER_NAME, WEATHER_PARAMETERS
from tests.tools.running_server import DEMO, RunningServer

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]
FUNCTION = {
    "name": WEATHER_NAME,
    "description": WEATHER_DESCRIPTION,
    "parameters": WEATHER_PARAMETERS,
}

# By path: the type of an answer, that of an event, and requests for a thought, a call and a cut.
REQUESTS: dict[str, tuple[Any, Any, list[dict[str, Any]]]] = {
    "/v1/chat/completions": (
        ChatCompletion,
        ChatCompletionChunk,
        [
            {"messages": SUM, "logprobs": True, "top_logprobs": 1},
            {"messages": PARIS, "tools": [{"type": "function", "function": FUNCTION}]},
            {"messages": SUM, "max_tokens": 2, "stream_options": {"include_usage": True}},
        ],
    ),
    "/v1/responses": (
        Response,
        ResponseStreamEvent,
        [
            {"input": SUM, "instructions": "Be kind.", "reasoning": {"effort": "low"}},
            {"input": PARIS, "tools": [FUNCTION | {"type": "function"}]},
            {"input": "What is 17 + 25?", "max_output_tokens": 2},
        ],
    ),
    "/v1/messages": (
        Message,
        RawMessageStreamEvent,
        [
            {"messages": SUM, "max_tokens": 200},
            {
                "messages": PARIS,
                "max_tokens": 200,
                "thinking": {"type": "disabled"},
                "tools": [{"name": WEATHER_NAME, "input_schema": WEATHER_PARAMETERS}],
            },
            {"messages": SUM, "max_tokens": 2},
            {"messages": SUM, "max_tokens": 200, "stop_sequences": ["="]},
        ],
    ),
}


def events_of(text: str) -> list[str]:
    lines = (line for line in text.split("\n") if line.startswith("data: "))
    return [data for line in lines if (data := line.removeprefix("data: ")) != "[DONE]"]


@pytest.mark.parametrize("path", REQUESTS)
def test_answers_and_events_fit(server: RunningServer, path: str) -> None:
    answer_type, event_type, requests = REQUESTS[path]
    event_adapter = TypeAdapter(event_type)
    for request in requests:
        body = {"model": DEMO, "temperature": 0} | request
        answer = server.post(path, **body)
        assert answer.status_code == 200, answer.text
        TypeAdapter(answer_type).validate_json(answer.text)
        stream = server.post(path, stream=True, **body)
        events = events_of(stream.text)
        assert len(events) > 2
        for data in events:
            # Each event is named by its type, where it is named at all.
            kind = json.loads(data).get("type")
            assert kind is None or f"event: {kind}\ndata: {data}\n\n" in stream.text
            event_adapter.validate_json(data)


def test_so_do_the_small_ones(server: RunningServer) -> None:
    for model in server.http.get("/v1/models").json()["data"]:
        Model.model_validate(model)
    Model.model_validate(server.http.get(f"/v1/models/{DEMO}").json())
    body = {"model": DEMO, "prompt": "What is 17 + 25?", "max_tokens": 2}
    Completion.model_validate(server.post("/v1/completions", **body).json())
    for data in events_of(server.post("/v1/completions", stream=True, **body).text):
        chunk = json.loads(data)
        # Null until the end, of which the type knows nothing.
        chunk["choices"][0]["finish_reason"] = chunk["choices"][0]["finish_reason"] or "stop"
        Completion.model_validate(chunk)
    counted = server.post("/v1/messages/count_tokens", model=DEMO, messages=SUM).json()
    MessageTokensCount.model_validate(counted)
