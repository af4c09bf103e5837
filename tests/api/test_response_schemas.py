"""Every answer of every route under /api has Ollama's fields, of Ollama's types, and no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from server.store.demo_model import DEMO_FILE
from tests.tools import wire_schemas as wire
from tests.tools.api_clients import WEATHER_DESCRIPTION, WEATHER_NAME, WEATHER_PARAMETERS
from tests.tools.registry import DEMO_PATH, Registry, registry_running
from tests.tools.running_server import DEMO, ENDLESS, RunningServer, needs_demo
from tests.tools.wire_schemas import fits

SUM = "What is 17 + 25?"
ASKED = [{"role": "user", "content": SUM}]
PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": WEATHER_NAME,
        "description": WEATHER_DESCRIPTION,
        "parameters": WEATHER_PARAMETERS,
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GREEDY = {"temperature": 0, "num_predict": 160}
CUT = {"temperature": 0, "num_predict": 3}

# Requests to /api/generate and /api/chat, and the options of both that change what is answered.
VARIANTS: list[dict[str, Any]] = [
    {"think": True, "options": GREEDY},
    {"think": False, "options": GREEDY},
    {"think": False, "options": CUT},
    {"think": True, "options": CUT},
    {"think": True, "options": GREEDY, "logprobs": True},
    {"think": False, "options": CUT, "logprobs": True, "top_logprobs": 3},
    {"think": False, "options": GREEDY, "format": SCHEMA},
]


def lines_of(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return response.text.splitlines()


def only_one(response: httpx.Response) -> bytes:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    return response.content


def all_fit(
    response: httpx.Response, chunk: type[BaseModel], final: type[BaseModel]
) -> list[dict[str, Any]]:
    *chunks, last = lines_of(response)
    assert chunks
    for line in chunks:
        fits(chunk, line)
    fits(final, last)
    return [json.loads(line) for line in (*chunks, last)]


def steps_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The objects of a create, pull or push, each of which is one of three kinds."""
    steps: list[dict[str, Any]] = [json.loads(line) for line in lines_of(response)]
    for step in steps:
        if set(step) == {"status"}:
            fits(wire.Status, step)
        elif step["digest"].startswith("sha256:"):
            fits(wire.Transfer, step)
        else:
            fits(wire.Quantizing, step)
    assert steps[-1] == {"status": "success"}
    return steps


def delete(server: RunningServer, name: str) -> httpx.Response:
    return server.http.request("DELETE", "/api/delete", json={"model": name})


@pytest.mark.parametrize("variant", VARIANTS)
def test_generate(server: RunningServer, variant: dict[str, Any]) -> None:
    body = {"model": DEMO, "prompt": SUM} | variant
    *chunks, last = all_fit(
        server.post("/api/generate", **body), wire.GenerateChunk, wire.GenerateFinal
    )
    whole = json.loads(only_one(server.post("/api/generate", stream=False, **body)))
    fits(wire.GenerateFinal, whole)
    assert last["response"] == ""
    assert "thinking" not in last
    assert whole["context"] == last["context"]
    for key, is_asked in (("thinking", variant["think"]), ("logprobs", "logprobs" in variant)):
        assert (key in whole) == is_asked
        assert any(key in chunk for chunk in chunks) == is_asked
    assert "context" not in json.loads(
        only_one(server.post("/api/generate", stream=False, raw=True, **body))
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_chat(server: RunningServer, variant: dict[str, Any]) -> None:
    body = {"model": DEMO, "messages": ASKED} | variant
    *chunks, last = all_fit(server.post("/api/chat", **body), wire.ChatChunk, wire.ChatFinal)
    whole = json.loads(only_one(server.post("/api/chat", stream=False, **body)))
    fits(wire.ChatFinal, whole)
    assert last["message"] == {"role": "assistant", "content": ""}
    assert "context" not in whole
    assert ("thinking" in whole["message"]) == variant["think"]
    assert any("thinking" in chunk["message"] for chunk in chunks) == variant["think"]
    assert ("logprobs" in whole) == ("logprobs" in variant)


@needs_demo
@pytest.mark.parametrize("think", [False, True])
def test_a_chat_with_a_tool(server: RunningServer, think: bool) -> None:
    body = {"model": DEMO, "messages": PARIS, "tools": [WEATHER], "think": think}
    body["options"] = GREEDY
    chunks = all_fit(server.post("/api/chat", **body), wire.ChatChunk, wire.ChatFinal)
    whole = fits(wire.ChatFinal, only_one(server.post("/api/chat", stream=False, **body)))
    (call,) = whole.message.tool_calls
    assert call.function.name == WEATHER_NAME
    streamed = [each for chunk in chunks for each in chunk["message"].get("tool_calls", [])]
    assert [each["function"] for each in streamed] == [call.function.model_dump()]


def test_a_chat_in_a_session_says_which(server: RunningServer) -> None:
    body = {"model": DEMO, "messages": ASKED, "options": CUT, "session": "schemas"}
    *_, last = all_fit(server.post("/api/chat", **body), wire.ChatChunk, wire.ChatFinal)
    assert last["session"] == "schemas"
    server.http.delete("/api/sessions/schemas")


def test_loading_unloading_and_rendering(server: RunningServer) -> None:
    for stream in (False, True):
        kept = {"model": ENDLESS, "stream": stream}
        for more, reason in (({}, "load"), ({"keep_alive": 0}, "unload")):
            generated = fits(wire.GenerateDone, server.post("/api/generate", **kept, **more).text)
            assert generated.done_reason == reason
            chatted = fits(wire.ChatDone, server.post("/api/chat", **kept, **more).text)
            assert chatted.done_reason == reason
        kept["_debug_render_only"] = True
        fits(wire.GenerateDebug, server.post("/api/generate", prompt=SUM, **kept).text)
        fits(wire.ChatDebug, server.post("/api/chat", messages=ASKED, **kept).text)


def test_what_there_is(server: RunningServer) -> None:
    fits(wire.Version, only_one(server.http.get("/api/version")))
    server.unload_all()
    assert fits(wire.Ps, only_one(server.http.get("/api/ps"))).models == []
    for keep_alive in (-1, "5m", 300):
        server.answer("/api/generate", model=DEMO, prompt="x", options=CUT, keep_alive=keep_alive)
        (running,) = fits(wire.Ps, only_one(server.http.get("/api/ps"))).models
        assert running.name == f"{DEMO}:latest"
    tags = fits(wire.Tags, only_one(server.http.get("/api/tags")))
    assert {f"{DEMO}:latest", f"{ENDLESS}:latest"} <= {each.name for each in tags.models}


@pytest.mark.parametrize("model", [DEMO, ENDLESS])
def test_show(server: RunningServer, model: str) -> None:
    short = fits(wire.Show, only_one(server.post("/api/show", model=model)))
    whole = fits(wire.Show, only_one(server.post("/api/show", model=model, verbose=True)))
    assert set(short.model_info) == set(whole.model_info)
    assert {"general.architecture", "general.parameter_count"} <= set(short.model_info)
    assert not {"general.name", "tokenizer.chat_template"} & set(whole.model_info)
    tokens = "tokenizer.ggml.tokens"
    assert len(whole.model_info[tokens]) > 5
    assert short.model_info[tokens] in ([], None)


def test_embeddings(server: RunningServer) -> None:
    body = {"model": ENDLESS}
    for given, number in (("one", 1), (["one", "two"], 2), ([], 0), ("", 0)):
        embed = fits(wire.Embed, only_one(server.post("/api/embed", input=given, **body)))
        assert len(embed.embeddings) == number
    for prompt in ("one", ""):
        old = fits(wire.Embedding, only_one(server.post("/api/embeddings", prompt=prompt, **body)))
        assert bool(old.embedding) == bool(prompt)


@pytest.fixture
def made(server: RunningServer) -> Iterator[str]:
    """A name that is free again afterwards."""
    yield "schemas/made:v1"
    delete(server, "schemas/made:v1")


def test_create_copy_and_delete(server: RunningServer, made: str) -> None:
    parts = {
        "system": "Be kind.",
        "parameters": {"stop": ["a", "b"], "temperature": 0.5},
        "messages": [{"role": "user", "content": "Hi"}],
        "license": ["MIT", "CC0"],
    }
    steps_of(server.post("/api/create", model=made, **{"from": ENDLESS}, **parts))
    shown = fits(wire.Show, only_one(server.post("/api/show", model=made)))
    assert shown.system == "Be kind."
    assert [each.content for each in shown.messages] == ["Hi"]
    assert server.post("/api/copy", source=made, destination="schemas/copy").content == b""
    fits(wire.Tags, only_one(server.http.get("/api/tags")))
    response = delete(server, "schemas/copy")
    assert (response.status_code, response.content) == (200, b"")
    again = server.post("/api/create", model=made, stream=False, **{"from": ENDLESS})
    assert fits(wire.Status, only_one(again)).status == "success"


def test_blobs_and_create_from_them(server: RunningServer, made: str) -> None:
    shown = server.post("/api/show", model=ENDLESS).json()
    path = shown["modelfile"].split("FROM ")[-1].splitlines()[0]
    digest = path.rpartition("/")[2].replace("sha256-", "sha256:")
    steps = steps_of(
        server.post("/api/create", model=made, files={"m.gguf": digest}, quantize="q8_0")
    )
    assert any("total" in step for step in steps)
    data = b"A blob of no model.\n"
    route = f"/api/blobs/sha256:{hashlib.sha256(data).hexdigest()}"
    fits(wire.Error, server.http.post("/api/blobs/sha256:" + "0" * 64, content=data).content)
    assert server.http.head(route).status_code == 404
    for status in (201, 200):
        response = server.http.post(route, content=data)
        assert (response.status_code, response.content) == (status, b"")
    assert server.http.head(route).status_code == 200


@pytest.fixture
def registry() -> Iterator[Registry]:
    with registry_running() as registry:
        yield registry


@needs_demo
def test_pull_and_push(server: RunningServer, registry: Registry) -> None:
    registry.add_manifest(
        DEMO_PATH, {"model_family": "rwkv7"}, model=DEMO_FILE.read_bytes() + b"\0"
    )
    name = f"{registry.host}/{DEMO_PATH}"
    try:
        steps = steps_of(server.post("/api/pull", model=name))
        assert any("completed" in step for step in steps)
        again = server.post("/api/pull", model=name, stream=False)
        assert fits(wire.Status, only_one(again)).status == "success"
        registry.blobs.clear()
        steps = steps_of(server.post("/api/push", model=name))
        assert any("completed" in step for step in steps)
        again = server.post("/api/push", model=name, stream=False)
        assert fits(wire.Status, only_one(again)).status == "success"
    finally:
        delete(server, name)
    first, last = lines_of(server.post("/api/pull", model=f"{registry.host}/team/nothing"))
    fits(wire.Status, first)
    fits(wire.Error, last)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/generate", {"model": "no-such"}, 404),
        ("POST", "/api/generate", {"model": DEMO, "prompt": "x", "options": {"top_k": "x"}}, 400),
        ("POST", "/api/generate", {"model": DEMO, "prompt": "x", "suffix": "y"}, 400),
        ("POST", "/api/chat", {}, 400),
        ("POST", "/api/chat", {"model": "no-such", "messages": ASKED}, 404),
        ("POST", "/api/chat", {"model": DEMO, "messages": "x"}, 400),
        ("POST", "/api/chat", {"model": DEMO, "messages": ASKED, "think": "x"}, 400),
        ("POST", "/api/show", {}, 400),
        ("POST", "/api/show", {"model": "no-such"}, 404),
        ("POST", "/api/embed", {"model": "no-such", "input": "x"}, 404),
        ("POST", "/api/embed", {"model": DEMO, "input": 5}, 400),
        ("POST", "/api/embeddings", {"model": "no-such", "prompt": "x"}, 404),
        ("POST", "/api/create", {"model": "schemas/none"}, 400),
        ("POST", "/api/copy", {"source": "no-such", "destination": "x"}, 404),
        ("POST", "/api/copy", {"source": "", "destination": "x"}, 400),
        ("DELETE", "/api/delete", {"model": "no-such"}, 404),
        ("POST", "/api/pull", {"model": "a b"}, 400),
        ("POST", "/api/push", {}, 400),
        ("POST", "/api/push", {"model": "schemas/none", "stream": False}, 404),
        ("GET", "/api/chat", None, 405),
        ("GET", "/api/nothing", None, 404),
    ],
)
def test_errors(
    server: RunningServer, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    response = server.http.request(method, path, json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    fits(wire.Error, response.content)


def test_the_schemas_refuse_what_is_not_ollamas() -> None:
    """Else all of the above would prove nothing."""
    good = {"model": "m", "created_at": "2026-08-01T10:00:00.5Z", "response": "", "done": False}
    fits(wire.GenerateChunk, good)
    wrong: list[dict[str, Any]] = [
        {"surplus": 1},
        {"thinking": ""},
        {"thinking": None},
        {"logprobs": []},
        {"created_at": "2026-08-01T10:00:00.50Z"},
        {"created_at": "2026-13-01T10:00:00Z"},
        {"created_at": "2026-08-01T10:00:00+02:00"},
        {"done": True},
        {"done": 0},
        {"response": None},
    ]
    for change in wrong:
        with pytest.raises(ValidationError):
            fits(wire.GenerateChunk, good | change)
    for key in good:
        with pytest.raises(ValidationError):
            fits(wire.GenerateChunk, {name: good[name] for name in good if name != key})
