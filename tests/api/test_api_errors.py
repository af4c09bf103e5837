"""What every route has in common: the first words, unknown paths, and errors in Ollama's shape."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.tools.running_server import DEMO, ENDLESS, RunningServer

HELLO = [{"role": "user", "content": "hello"}]
# As a client may write it; the message repeats the name as it was written.
MISSING = "No-Such/Model"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_first_words(server: RunningServer, method: str) -> None:
    response = server.http.request(method, "/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text == ("Ollama is running" if method == "GET" else "")


def test_the_version_is_a_number_that_clients_accept(server: RunningServer) -> None:
    answer = server.http.get("/api/version").json()
    assert list(answer) == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", answer["version"])
    assert tuple(map(int, answer["version"].split("."))) >= (0, 6, 4)
    assert server.http.head("/api/version").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("POST", "/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/redoc", 404),
        ("POST", "/api/shutdown", 404),
        ("POST", "/api/me", 404),
        ("GET", "/api/chat", 405),
        ("GET", "/api/generate", 405),
        ("POST", "/api/tags", 405),
        ("DELETE", "/api/ps", 405),
        ("POST", "/api/version", 405),
        ("GET", "/api/show", 405),
    ],
)
def test_where_there_is_no_route(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    response = server.http.request(method, path)
    words = {404: "404 page not found", 405: "405 method not allowed"}
    assert (response.status_code, response.json()) == (status, {"error": words[status]})


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/show"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "missing request body"),
        (b"{", "unexpected EOF"),
        (b"model=x", "invalid character 'm' looking for beginning of value"),
    ],
)
def test_bodies_that_are_no_json(server: RunningServer, path: str, body: bytes, words: str) -> None:
    response = server.http.post(path, content=body)
    assert (response.status_code, response.json()) == (400, {"error": words})
    assert response.headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/generate", {"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ("/api/chat", {"top_logprobs": -1}, 400, "top_logprobs must be between 0 and 20"),
        ("/api/generate", {}, 404, "model '' not found"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/generate", {"model": MISSING, "raw": True, "system": "x"}, 404,
         f"model '{MISSING}' not found"),
        ("/api/chat", {"model": MISSING, "think": True}, 404, f"model '{MISSING}' not found"),
        ("/api/show", {"name": MISSING}, 404, f"model '{MISSING}' not found"),
        ("/api/generate", {"model": "../../etc/passwd"}, 400, "invalid model name"),
        ("/api/chat", {"model": "a b"}, 400, "invalid model name"),
        ("/api/show", {"model": "x:"}, 400, "invalid model name"),
        ("/api/generate", {"model": 5}, 400,
         "json: cannot unmarshal number into Go struct field GenerateRequest.model of type string"),
        ("/api/chat", {"model": DEMO, "messages": "hi"}, 400,
         "json: cannot unmarshal string into Go struct field ChatRequest.messages "
         "of type []api.Message"),
        ("/api/chat", {"model": DEMO, "think": "a bit"}, 400,
         'invalid think value: "a bit" (must be "high", "medium", "low", "max", true, or false)'),
        ("/api/generate", {"model": DEMO, "raw": True, "template": "x", "prompt": "x"}, 400,
         "raw mode does not support template, system, or context"),
        ("/api/generate", {"model": DEMO, "raw": True, "context": [1], "prompt": "x"}, 400,
         "raw mode does not support template, system, or context"),
        ("/api/generate", {"model": ENDLESS, "think": True, "prompt": "x"}, 400,
         f'"{ENDLESS}" does not support thinking'),
        ("/api/chat", {"model": ENDLESS, "think": "low", "messages": HELLO, "tools": [{}]}, 400,
         f'"{ENDLESS}" does not support thinking'),
        ("/api/generate", {"model": DEMO, "suffix": "x", "prompt": "x"}, 400,
         f"registry.ollama.ai/library/{DEMO}:latest does not support insert"),
        ("/api/chat", {"model": ENDLESS, "messages": HELLO, "tools": [{}]}, 400,
         f"registry.ollama.ai/library/{ENDLESS}:latest does not support tools"),
        ("/api/generate", {"model": DEMO, "prompt": "x", "images": ["aGk="]}, 400,
         f"registry.ollama.ai/library/{DEMO}:latest does not support vision"),
        ("/api/chat", {"model": DEMO, "messages": [{"role": "user", "images": ["aGk="]}]}, 400,
         f"registry.ollama.ai/library/{DEMO}:latest does not support vision"),
        ("/api/generate", {"model": DEMO, "prompt": "x", "template": "a\n{{ if }}"}, 400,
         "template: :2: missing value for if"),
        ("/api/generate", {"model": DEMO, "prompt": "x", "template": "{{ len 3 }}"}, 400,
         'template: :1:3: executing "" at <len>: error calling len: len of type int'),
        ("/api/generate", {"model": DEMO, "prompt": "x", "format": "xml"}, 400,
         'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object'),
        ("/api/chat", {"model": DEMO, "messages": HELLO, "format": [1, 2]}, 400,
         'invalid format: "[1,2]"; expected "json" or a valid JSON Schema object'),
        ("/api/generate", {"model": DEMO, "prompt": "x", "format": {"type": "foo"}}, 400,
         "invalid JSON schema in format: Invalid type: foo"),
        ("/api/chat", {"model": DEMO, "messages": HELLO, "format": {"$ref": "#/none"}}, 400,
         "invalid JSON schema in format: Pointer '/none' does not exist"),
        ("/api/chat", {"model": DEMO, "messages": [{"role": "robot", "content": "x"}]}, 400,
         'invalid role: "robot" (must be one of system, user, assistant, tool)'),
        ("/api/generate", {"model": DEMO, "prompt": "x", "options": {"temperature": "x"}}, 400,
         'option "temperature" must be of type float32'),
        ("/api/generate", {"model": DEMO, "prompt": "x", "context": [-1]}, 400,
         "context holds -1, which is no token of this model"),
    ],
)  # fmt: skip
def test_errors_word_for_word(
    server: RunningServer, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    response = server.post(path, **body)
    assert (response.status_code, response.json()) == (status, {"error": words})
    assert response.headers["content-type"] == "application/json; charset=utf-8"


def test_an_option_out_of_range_is_named(server: RunningServer) -> None:
    response = server.post("/api/generate", model=DEMO, prompt="x", options={"temperature": -1})
    assert response.status_code == 400
    assert "temperature" in response.json()["error"]


def test_fields_that_ask_for_nothing_are_no_errors(server: RunningServer) -> None:
    """Clients send their defaults: empty strings and lists, null, and fields of their own."""
    answer = server.answer(
        "/api/generate", model=DEMO, prompt="Hi!", suffix="", template="", system="", images=[],
        format="", context=[], think=None, keep_alive=None, truncate=False, shift=False,
        logprobs=False, top_logprobs=5, no_such_field={"x": 1}, options={"num_predict": 1},
    )  # fmt: skip
    assert answer["done"]


def test_json_does_not_need_its_content_type(server: RunningServer) -> None:
    body = json.dumps({"model": DEMO}).encode()
    response = server.http.post("/api/show", content=body, headers={"content-type": "text/plain"})
    assert response.status_code == 200
