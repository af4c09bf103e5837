"""`format`, calls of offered tools, and logprobs, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import ollama
import pytest

from tests.tools.running_server import DEMO, ENDLESS, RunningServer, needs_demo, wait_until

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ADA = [{"role": "user", "content": "My name is Ada and I am 36."}]
PIZZA = {
    "type": "function",
    "function": {
        "name": "order_pizza",
        "description": "Order a pizza",
        "parameters": {
            "type": "object",
            "properties": {"size": {"type": "string", "enum": ["small", "large"]}},
            "required": ["size"],
        },
    },
}


@needs_demo
@pytest.mark.parametrize("think", [True, False, "low"])
@pytest.mark.parametrize("seed", [0, 1])
def test_content_fits_and_a_thought_is_free(
    server: RunningServer, think: bool | str, seed: int
) -> None:
    answer = server.answer(
        "/api/chat", model=DEMO, messages=ADA, format=SCHEMA, think=think, options={"seed": seed}
    )
    jsonschema.validate(json.loads(answer["message"]["content"]), SCHEMA)
    assert answer["done_reason"] == "stop"
    assert bool(answer["message"].get("thinking")) is bool(think)


@pytest.mark.parametrize("raw", [False, True])
def test_a_stream_of_json_whose_weights_are_random(server: RunningServer, raw: bool) -> None:
    """The endless model's tokens are bytes, its texts noise: the grammar alone makes them JSON."""
    flags = {"type": "array", "items": {"enum": [True, "User:\n\n"]}, "minItems": 2, "maxItems": 4}
    for seed in range(3):
        chunks = server.stream(
            "/api/generate", model=ENDLESS, prompt="x", raw=raw, format=flags,
            options={"temperature": 2, "seed": seed, "draft_num_predict": seed * 4},
        )  # fmt: skip
        jsonschema.validate(json.loads("".join(each["response"] for each in chunks)), flags)
        assert chunks[-1]["done_reason"] == "stop"


def test_json_means_an_object(server: RunningServer) -> None:
    answer = server.answer(
        "/api/generate", model=ENDLESS, prompt="x", format="json", options={"num_predict": 30}
    )
    assert answer["response"].lstrip().startswith("{")
    assert answer["done_reason"] in ("stop", "length")


def test_a_limit_cuts_json_short(server: RunningServer) -> None:
    answer = server.answer(
        "/api/generate", model=ENDLESS, prompt="x", format=SCHEMA, options={"num_predict": 5}
    )
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 5)


def test_json_that_never_ends_is_given_up(server: RunningServer) -> None:
    """After ten contexts, when the request has no limit of its own."""
    answer = server.answer(
        "/api/generate", model=ENDLESS, prompt="x", options={"num_ctx": 8},
        format={"type": "string", "minLength": 90_000},
    )  # fmt: skip
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 80)


def test_a_chat_goes_on_after_a_reply_with_a_format(server: RunningServer) -> None:
    first = server.answer("/api/chat", model=ENDLESS, messages=ADA, format=SCHEMA)
    again = server.answer("/api/chat", model=ENDLESS, messages=ADA, format=SCHEMA)
    assert again["prompt_cached_count"] > 0
    messages = [*ADA, first["message"], {"role": "user", "content": "And now?"}]
    plain = server.answer("/api/chat", model=ENDLESS, messages=messages, options={"num_predict": 5})
    assert plain["prompt_cached_count"] > 0
    assert plain["eval_count"] == 5


def test_a_client_that_leaves_within_json(server: RunningServer) -> None:
    body = {"model": ENDLESS, "prompt": "x", "format": {"type": "string", "minLength": 90_000}}
    with server.http.stream("POST", "/api/generate", json=body) as response:
        next(response.iter_lines())
    engines = [each.engine for each in server.context.manager.loaded()]
    wait_until(lambda: all(engine.load.num_running == 0 for engine in engines))


def test_the_official_client_takes_it(client: ollama.Client) -> None:
    answer = client.chat(ENDLESS, ADA, format=SCHEMA, options={"seed": 1})
    jsonschema.validate(json.loads(answer.message.content or ""), SCHEMA)


@needs_demo
@pytest.mark.parametrize("think", [True, False])
def test_a_call_is_of_an_offered_tool(server: RunningServer, think: bool) -> None:
    """The demo model would call get_weather, which it knows and which is not offered."""
    for seed in range(4):
        answer = server.answer(
            "/api/chat", model=DEMO, tools=[PIZZA], think=think, options={"seed": seed},
            messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        )  # fmt: skip
        for call in answer["message"].get("tool_calls", []):
            assert call["function"]["name"] == "order_pizza"
            parameters = PIZZA["function"]["parameters"]  # type: ignore[index]
            jsonschema.validate(call["function"]["arguments"], parameters)
        assert "```json" not in answer["message"]["content"]


def deep(num_levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(num_levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": [-(1 << 63)]}, "the number -9.223e+18 in it is too large"),
        ({"enum": [1 << 64]}, "too large"),
        ({"type": "number", "maximum": 1e300}, "too large"),
        (deep(200), "nested too deep: at most 64 levels"),
        ({"$defs": {"a": {"anyOf": [{"$ref": f"#{i}"} for i in range(301)]}}}, "at most 300"),
        ({"type": "string", "pattern": "a" * 10_001}, "at most 10000 characters"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "to itself without end"),
        ({"type": "string", "pattern": "(" * 1000 + ")" * 1000}, "regex parse error"),
    ],
)
def test_a_schema_past_the_limits_is_refused_and_the_server_goes_on(
    server: RunningServer, schema: dict[str, Any], words: str
) -> None:
    response = server.post("/api/generate", model=ENDLESS, prompt="x", format=schema)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error.startswith("invalid JSON schema in format: ")
    assert words in error
    tool = {**PIZZA, "function": {"name": "x", "parameters": {"properties": {"a": schema}}}}
    body = {"model": DEMO, "messages": ADA, "tools": [tool], "options": {"num_predict": 3}}
    assert server.answer("/api/chat", **body)["eval_count"] == 3


@needs_demo
def test_logprobs_of_a_reply_with_a_thought(server: RunningServer) -> None:
    body: dict[str, Any] = {
        "model": DEMO, "messages": ADA, "logprobs": True, "top_logprobs": 2, "options": {"seed": 1},
    }  # fmt: skip
    chunks = server.stream("/api/chat", **body)
    whole = server.answer("/api/chat", **body)
    found = [each for chunk in chunks for each in chunk.get("logprobs", [])]
    assert found == whole["logprobs"]
    written = b"".join(bytes(each["bytes"]) for each in found).decode()
    thinking, content = whole["message"]["thinking"], whole["message"]["content"]
    assert written.startswith(">")  # the end of the tag that the prompt has left open
    assert written.partition("</think>")[0].removeprefix(">").strip() == thinking
    assert written.partition("</think>")[2].strip() == content
    for each in found:
        assert list(each) == ["token", "logprob", "bytes", "top_logprobs"]
        assert len(each["top_logprobs"]) == 2
        assert each["top_logprobs"][0]["logprob"] >= each["logprob"]
        assert bytes(each["bytes"]).decode("utf-8", "replace") == each["token"]
    assert whole["eval_count"] - len(found) in (0, 1)  # the end of text has none


@pytest.mark.parametrize("raw", [False, True])
def test_logprobs_spell_the_reply(server: RunningServer, raw: bool) -> None:
    for seed in range(3):
        answer = server.answer(
            "/api/generate", model=ENDLESS, prompt="x", raw=raw, logprobs=True,
            options={"num_predict": 40, "temperature": 3, "seed": seed, "top_k": 0, "top_p": 1},
        )  # fmt: skip
        written = b"".join(bytes(each["bytes"]) for each in answer["logprobs"])
        text = written.decode("utf-8", "replace")
        assert (text if raw else text.lstrip()) == answer["response"]
        assert "top_logprobs" not in answer["logprobs"][0]
        assert len(answer["logprobs"]) == 40


def test_no_logprobs_unless_asked_for(server: RunningServer) -> None:
    for more in ({}, {"top_logprobs": 5}):
        body = {"model": ENDLESS, "prompt": "x", "options": {"num_predict": 3}, **more}
        assert all("logprobs" not in each for each in server.stream("/api/generate", **body))
