"""A client of named sessions, and what a client without them would have to send."""

from __future__ import annotations

from typing import Any

from tests.tools.running_server import DEMO, RunningServer

Message = dict[str, Any]

OPTIONS = {"seed": 3, "num_predict": 60}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def chat(
    server: RunningServer, messages: list[Message], session: str | None = None, **body: Any
) -> dict[str, Any]:
    """One answer, not streamed."""
    named = {} if session is None else {"session": session}
    whole = {"model": DEMO, "options": OPTIONS, "think": False, **named, **body}
    return server.answer("/api/chat", messages=messages, **whole)


def refusal(server: RunningServer, status: int, path: str = "/api/chat", **body: Any) -> str:
    """The error that a request is answered with."""
    response = server.post(path, **{"model": DEMO, "stream": False, **body})
    assert response.status_code == status, response.text
    return error_of(response.json())


def error_of(value: Any) -> str:
    assert list(value) == ["error"]
    error = value["error"]
    assert isinstance(error, str)
    assert "\n" not in error
    return error


def stored(server: RunningServer, session: str) -> list[Message]:
    """The messages that a session holds."""
    response = server.http.get(f"/api/sessions/{session}")
    assert response.status_code == 200, response.text
    messages = response.json()["messages"]
    assert isinstance(messages, list)
    return messages


def num_read(answer: dict[str, Any]) -> int:
    """Tokens of the prompt that were not in the cache."""
    return int(answer["prompt_eval_count"]) - int(answer["prompt_cached_count"])
