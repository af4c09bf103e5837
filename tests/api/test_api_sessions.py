"""Named sessions: a client sends what is new, and gets what a client gets that sends everything."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.settings import Settings
from server.store.demo_model import DEMO_FILE
from server.store.names import ModelName
from server.store.stored_model import ModelParts, write_model
from tests.tools.running_server import (
    DEMO,
    ENDLESS,
    TIMEOUT_S,
    RunningServer,
    needs_demo,
    running,
    wait_until,
)
from tests.tools.session_client import (
    OPTIONS,
    Message,
    chat,
    error_of,
    refusal,
    stored,
    user,
)

pytestmark = needs_demo

SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}
SAID = ("My name is Ada.", "What is my name?", "Hello!", "What is 4 + 5?", "My cat is Tom.")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ALIAS = "rwkv7-demo-alias"  # the demo model with a system message of its own


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[RunningServer]:
    """A server of its own, so that a test may look at the list of all sessions."""
    with running(Settings(models=models, device="cpu")) as server:
        store = server.context.store
        name = ModelName.parse(ALIAS)
        blob = store.add_blob(DEMO_FILE)
        write_model(store, name, blob, ModelParts(system="You are a pirate."))
        yield server
        store.manifest_path(name).unlink()


def is_idle(server: RunningServer) -> bool:
    return all(loaded.engine.load.is_idle for loaded in server.context.manager.loaded())


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_new_messages_only_say_what_the_whole_history_says(
    server: RunningServer, think: bool, is_streamed: bool
) -> None:
    session = f"two-turns-{think}-{is_streamed}"
    options = {"seed": 11, "num_predict": 300}
    history: list[Message] = []
    for turn, text in enumerate(("My name is Ada.", "What is my name?", "Hello!")):
        new = [SYSTEM, user(text)] if not turn else [user(text)]
        body: dict[str, Any] = {"model": DEMO, "options": options, "think": think}
        expected = server.answer("/api/chat", messages=[*history, *new], **body)
        if is_streamed:
            answers = server.stream("/api/chat", messages=new, session=session, **body)
            assert not any("session" in each for each in answers[:-1])
        else:
            answers = [server.answer("/api/chat", messages=new, session=session, **body)]
        final = answers[-1]
        assert final["session"] == session
        assert final["done"]
        for part in ("content", "thinking"):
            said = "".join(each["message"].get(part, "") for each in answers)
            assert said == expected["message"].get(part, "")
        assert final["prompt_eval_count"] == expected["prompt_eval_count"]
        history += [*new, expected["message"]]
    assert "Ada" in history[4]["content"]
    assert stored(server, session) == history


def test_a_session_of_the_header(server: RunningServer) -> None:
    def ask(text: str, header: str, **body: Any) -> httpx.Response:
        whole = {"model": DEMO, "messages": [user(text)], "stream": False, **body}
        return server.http.post("/api/chat", json=whole, headers={"X-Anser-Session": header})

    assert ask("My name is Ada.", "by-header").json()["session"] == "by-header"
    assert ask("Hello!", "by-header", session="by-header").status_code == 200
    assert ask("Hello!", "by-header", session="").status_code == 200
    assert len(stored(server, "by-header")) == 6
    refused = ask("Hello!", "by-header", session="another")
    assert refused.status_code == 400
    assert "two different sessions" in error_of(refused.json())
    assert ask("Hello!", "not/an id").status_code == 400


def test_pages_may_send_the_header(server: RunningServer) -> None:
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "PUT"}
    preflight = server.http.options("/api/sessions/x/state", headers=headers)
    assert preflight.status_code == 204
    assert "X-Anser-Session" in preflight.headers["access-control-allow-headers"].split(",")
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert "DELETE" in preflight.headers["access-control-allow-methods"]


def test_no_name_no_session(server: RunningServer) -> None:
    before = server.http.get("/api/sessions").json()
    assert "session" not in chat(server, [user("Hello!")])
    assert "session" not in chat(server, [user("Hello!")], "")
    assert "session" not in chat(server, [user("Hello!")], session=None)
    assert server.http.get("/api/sessions").json() == before


@pytest.mark.parametrize(
    "wrong",
    [".", "..", "-x", "_x", "a b", "a/b", "ä", "a\n", "x" * 129, "x" * 100_000, "a:b", "%41", " "],
)
def test_ids_that_cannot_be(server: RunningServer, wrong: str) -> None:
    error = refusal(server, 400, messages=[user("Hello!")], session=wrong)
    assert error.startswith("invalid session ")
    assert len(error) < 250


def test_ids_that_can_be(server: RunningServer) -> None:
    for right in ("a", "7", "A.b_c-d", "x" * 128):
        assert chat(server, [user("Hello!")], right)["session"] == right
        assert server.http.delete(f"/api/sessions/{right}").status_code == 200


@pytest.mark.parametrize(
    ("value", "kind"), [(1, "number"), (True, "bool"), ([], "array"), ({}, "object")]
)
@pytest.mark.parametrize("path", ["chat", "generate"])
def test_ids_of_another_type(server: RunningServer, value: Any, kind: str, path: str) -> None:
    struct = f"{path.capitalize()}Request"
    assert refusal(server, 400, f"/api/{path}", session=value) == (
        f"json: cannot unmarshal {kind} into Go struct field {struct}.session of type string"
    )


def test_generate_has_none(server: RunningServer) -> None:
    body = {"model": DEMO, "prompt": "Hello!", "stream": False}
    assert "no sessions" in refusal(server, 400, "/api/generate", prompt="x", session="a")
    response = server.http.post("/api/generate", json=body, headers={"X-Anser-Session": "a"})
    assert response.status_code == 400


def test_a_session_belongs_to_its_model(server: RunningServer) -> None:
    chat(server, [user("My secret is 42.")], "mine")
    before = stored(server, "mine")
    for other in (ENDLESS, ALIAS):  # another file, and the same one under another name
        for messages in ([user("What is my secret?")], list[Message]()):
            error = refusal(server, 409, model=other, session="mine", messages=messages)
            assert error == "session 'mine' belongs to model 'rwkv7-demo:latest'"
    assert stored(server, "mine") == before
    assert chat(server, [user("Hello!")], "mine", model="RWKV7-Demo:latest")["session"] == "mine"


def test_the_list(server: RunningServer) -> None:
    chat(server, [user("Hello!")], "listed-1")
    chat(server, [user("Hello!")], "listed-2", model=ALIAS)
    chat(server, [user("Hello!")], "listed-1")
    found = server.http.get("/api/sessions").json()["sessions"]
    assert [each["session"] for each in found[:2]] == ["listed-1", "listed-2"]
    assert not any("messages" in each for each in found)
    one = server.http.get("/api/sessions/listed-1").json()
    assert found[0] == {key: value for key, value in one.items() if key != "messages"}
    assert (one["model"], one["message_count"]) == ("rwkv7-demo:latest", 4)
    assert one["created_at"] < one["updated_at"]
    assert one["created_at"].endswith("Z")
    final = chat(server, [user("Hello!")], "listed-1")
    one = server.http.get("/api/sessions/listed-1").json()
    assert one["token_count"] == final["prompt_eval_count"] + final["eval_count"]
    of_alias = server.http.get("/api/sessions", params={"model": ALIAS.upper()}).json()
    assert [each["session"] for each in of_alias["sessions"]] == ["listed-2"]
    assert server.http.get("/api/sessions", params={"model": "a b"}).status_code == 400
    loaded = server.context.manager.loaded()
    assert {each["state_size"] for each in found[:2]} == {each.state_bytes for each in loaded}
    for filter in ({}, {"model": DEMO}):
        few = server.http.get("/api/sessions", params={"limit": "1"} | filter).json()["sessions"]
        assert [each["session"] for each in few] == ["listed-1"]
    for limit in ("-1", "x", "²", "1" * 30):
        response = server.http.get("/api/sessions", params={"limit": limit})
        assert response.status_code == 400
        assert error_of(response.json()).startswith("invalid limit")


def test_delete(server: RunningServer) -> None:
    chat(server, [user("My name is Ada.")], "short-lived")
    response = server.http.delete("/api/sessions/short-lived")
    assert (response.status_code, response.content) == (200, b"")
    assert "short-lived" not in server.http.get("/api/sessions").text
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/fork"), ("GET", "/state")):
        response = server.http.request(method, f"/api/sessions/short-lived{path}")
        assert response.status_code == 404
        assert response.json() == {"error": "session 'short-lived' not found"}
    chat(server, [user("Hello!")], "short-lived")
    assert len(stored(server, "short-lived")) == 2


@pytest.mark.parametrize("path", ["", "/fork", "/state"])
def test_paths_with_ids_that_cannot_be(server: RunningServer, path: str) -> None:
    method = "POST" if path == "/fork" else "GET"
    response = server.http.request(method, f"/api/sessions/-x{path}")
    assert response.status_code == 400
    assert error_of(response.json()).startswith('invalid session "-x"')
    assert server.http.put("/api/sessions/-x/state", content=b"").status_code == 400


def test_wrong_methods(server: RunningServer) -> None:
    for method, path in (("POST", "/x"), ("PUT", "/x"), ("GET", "/x/fork"), ("DELETE", "")):
        assert server.http.request(method, f"/api/sessions{path}").status_code == 405


def test_forks_go_their_own_ways(server: RunningServer) -> None:
    chat(server, [SYSTEM, user("My name is Ada.")], "trunk")
    chat(server, [user("My cat is Tom.")], "trunk")
    trunk = stored(server, "trunk")
    fork = server.post("/api/sessions/trunk/fork", session="branch").json()
    assert (fork["session"], fork["message_count"]) == ("branch", 5)
    early = server.post("/api/sessions/trunk/fork", session="early", at=3).json()
    assert early["message_count"] == 3
    unnamed = server.http.post("/api/sessions/trunk/fork").json()["session"]
    empty = server.post("/api/sessions/trunk/fork", session="empty", at=0).json()
    assert "message_count" not in empty
    for session, history in (
        ("branch", trunk), ("early", trunk[:3]), (unnamed, trunk), ("trunk", trunk), ("empty", [])
    ):  # fmt: skip
        new = [user(f"What is my name? {session}")]
        expected = chat(server, [*history, *new])
        assert chat(server, new, session)["message"] == expected["message"]
        assert stored(server, session) == [*history, *new, expected["message"]]
    server.http.delete("/api/sessions/trunk")
    assert len(stored(server, "branch")) == 7


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"at": -1}, 400, "must be 0 to 2"),
        ({"at": 3}, 400, "must be 0 to 2"),
        ({"at": 2**62}, 400, "must be 0 to 2"),
        ({"at": "1"}, 400, "cannot unmarshal string into Go struct field ForkRequest.at"),
        ({"at": 1.5}, 400, "cannot unmarshal number"),
        ({"session": "a b"}, 400, "invalid session"),
        ({"session": "forked"}, 409, "session 'forked' already exists"),
    ],
)
def test_forks_that_cannot_be(
    server: RunningServer, body: dict[str, Any], status: int, words: str
) -> None:
    if server.http.get("/api/sessions/forked").status_code == 404:
        chat(server, [user("Hello!")], "forked")
    response = server.post("/api/sessions/forked/fork", **body)
    assert response.status_code == status
    assert words in error_of(response.json())


def test_a_client_may_go_on_sending_everything(server: RunningServer) -> None:
    history: list[Message] = [SYSTEM]
    for text in SAID:
        history.append(user(text))
        answer = chat(server, history, "everything")
        history.append(answer["message"])
        assert stored(server, "everything") == history
    # It edits, goes back and branches as without a session.
    for end in (5, 3, 7):
        edited = [*history[:end], user("What is 2 + 2?")]
        answer = chat(server, edited, "everything")
        assert answer["message"] == chat(server, edited)["message"]
        assert stored(server, "everything") == [*edited, answer["message"]]
        chat(server, history, "everything")  # goes on inside the last reply


def test_what_is_said_twice_is_new(server: RunningServer) -> None:
    for _ in range(3):
        chat(server, [user("Hello!")], "again")
    assert [each["content"] for each in stored(server, "again")[::2]] == ["Hello!"] * 3
    # The system message may be sent each time.
    for _ in range(3):
        chat(server, [SYSTEM, user("Hello!")], "again-2")
    assert [each["role"] for each in stored(server, "again-2")] == [
        "system", "user", "assistant", "user", "assistant", "user", "assistant"
    ]  # fmt: skip


def test_a_reply_that_was_cut_goes_on(server: RunningServer) -> None:
    options = {"seed": 1, "num_predict": 3}
    first = chat(server, [user("My name is Ada.")], "cut", options=options)
    assert first["done_reason"] == "length"
    rest = chat(server, [first["message"]], "cut")
    whole = stored(server, "cut")
    assert len(whole) == 2
    assert whole[1]["content"] == first["message"]["content"] + rest["message"]["content"]


def without_ids(message: Message) -> Message:
    calls = message.get("tool_calls", [])
    return message | {"tool_calls": [call["function"] for call in calls]}


def test_tools_are_remembered_and_answered(server: RunningServer) -> None:
    question = user("What is the weather in Paris?")
    first = chat(server, [question], "tools", tools=[WEATHER])
    call = first["message"]["tool_calls"][0]
    assert server.http.get("/api/sessions/tools").json()["tools"] == [WEATHER]
    result = {"role": "tool", "tool_name": "get_weather", "content": "sunny, 21 degrees"}
    expected = chat(server, [question, first["message"], result], tools=[WEATHER])
    # With or without the reply that is answered.
    server.post("/api/sessions/tools/fork", session="tools-2")
    for session, new in (("tools", [result]), ("tools-2", [first["message"], result])):
        answer = chat(server, new, session)
        assert answer["prompt_eval_count"] == expected["prompt_eval_count"]
        assert without_ids(answer["message"]) == without_ids(expected["message"])
        assert [each["role"] for each in stored(server, session)] == [
            "user", "assistant", "tool", "assistant"
        ]  # fmt: skip
    assert stored(server, "tools")[1]["tool_calls"] == [call]
    chat(server, [user("Hello!")], "tools", tools=[])
    assert "tools" not in server.http.get("/api/sessions/tools").json()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_calls_keep_the_ids_that_their_client_knows(
    server: RunningServer, is_streamed: bool
) -> None:
    session = f"call-ids-{is_streamed}"
    question = user("What is the weather in Paris?")
    body: dict[str, Any] = {"model": DEMO, "options": OPTIONS, "think": False, "session": session}

    def ask(*messages: Message) -> Message:
        answer = server.stream if is_streamed else lambda *a, **b: [server.answer(*a, **b)]
        pieces = answer("/api/chat", messages=messages, tools=[WEATHER], **body)
        said = [each["message"] for each in pieces]
        calls = [call for each in said for call in each.get("tool_calls", [])]
        reply = {"role": "assistant", "content": "".join(each["content"] for each in said)}
        return reply | ({"tool_calls": calls} if calls else {})

    first = ask(question)
    (call,) = first["tool_calls"]
    assert re.fullmatch("call_[a-z0-9]{8}", call["id"])
    assert stored(server, session) == [question, first]
    result = {
        "role": "tool", "tool_name": "get_weather", "tool_call_id": call["id"],
        "content": "sunny, 21 degrees",
    }  # fmt: skip
    # The whole chat is sent again, as clients do that know no sessions; then by one that has made
    # ids of its own.
    second = ask(question, first, result)
    assert stored(server, session) == [question, first, result, second]
    renamed = first | {"tool_calls": [{**call, "id": "mine"}]}
    third = ask(question, renamed, result, second, user("Hello!"))
    assert stored(server, session) == [question, first, result, second, user("Hello!"), third]


def test_what_only_loads_or_shows_keeps_nothing(server: RunningServer) -> None:
    assert chat(server, [], "unsaid")["session"] == "unsaid"
    shown = chat(server, [user("Hello!")], "unsaid", _debug_render_only=True)
    assert "Hello!" in shown["_debug_info"]["rendered_template"]
    assert server.http.get("/api/sessions/unsaid").status_code == 404
    chat(server, [user("My name is Ada.")], "unsaid")
    shown = chat(server, [user("Hello!")], "unsaid", _debug_render_only=True)
    assert "Ada" in shown["_debug_info"]["rendered_template"]
    refusal(server, 400, messages=[{"role": "nobody", "content": "x"}], session="unsaid")
    refusal(server, 400, messages=[user("x")], session="unsaid", options={"top_k": "x"})
    assert len(stored(server, "unsaid")) == 2


def test_requests_at_once_come_one_after_the_other(server: RunningServer) -> None:
    texts = [f"What is {number} + {number}?" for number in range(6)]
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(lambda text: chat(server, [user(text)], "busy"), texts))
    said = stored(server, "busy")
    assert len(said) == 2 * len(texts)
    assert sorted(each["content"] for each in said[::2]) == sorted(texts)
    by_text = dict(zip(texts, answers, strict=True))
    for index in range(0, len(said), 2):
        question, reply = said[index : index + 2]
        assert by_text[question["content"]]["message"] == reply
        assert chat(server, said[: index + 1])["message"] == reply


def test_too_many_requests_for_one_session(models: Path) -> None:
    with running(Settings(models=models, device="cpu", max_queue=2)) as server:
        body = {"model": ENDLESS, "messages": [user("go on")], "session": "crowd"}
        with server.http.stream("POST", "/api/chat", json=body) as first:
            lines = first.iter_lines()
            next(lines)
            with ThreadPoolExecutor() as pool:
                quick = {**body, "options": {"num_predict": 2}}
                waiting = [pool.submit(server.answer, "/api/chat", **quick) for _ in range(2)]
                queues = server.context.sessions._queues
                wait_until(lambda: queues["crowd"].num_requests == 3)
                response = server.post("/api/chat", **quick)
                assert response.status_code == 503
                assert "session 'crowd' is busy" in error_of(response.json())
                first.close()
                assert all(each.result()["done"] for each in waiting)
        assert len(stored(server, "crowd")) == 4
        assert not queues


@pytest.mark.parametrize("stream", [True, False])
def test_a_turn_whose_client_leaves_is_not_kept(server: RunningServer, stream: bool) -> None:
    session = f"left-{stream}"
    short = {"num_predict": 3, "seed": 1}
    chat(server, [user("first")], session, model=ENDLESS, options=short)
    before = stored(server, session)
    body = {"model": ENDLESS, "messages": [user("second")], "session": session, "stream": stream}
    content = json.dumps(body).encode()
    head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), TIMEOUT_S) as connection:
        connection.sendall(head.encode() + content)
        wait_until(lambda: not is_idle(server))
    wait_until(lambda: is_idle(server))
    assert stored(server, session) == before
    answer = chat(server, [user("third")], session, model=ENDLESS, options=short)
    expected = chat(server, [*before, user("third")], model=ENDLESS, options=short)
    assert answer["message"] == expected["message"]


def test_a_session_that_is_deleted_in_its_turn_stays_deleted(server: RunningServer) -> None:
    chat(server, [user("first")], "doomed", model=ENDLESS, options={"num_predict": 3})
    body = {"model": ENDLESS, "messages": [user("x")], "session": "doomed"}
    options = {"num_predict": 500}
    with server.http.stream("POST", "/api/chat", json={**body, "options": options}) as response:
        lines = response.iter_lines()
        next(lines)
        assert server.http.delete("/api/sessions/doomed").status_code == 200
        last = json.loads([*lines][-1])
    assert "session 'doomed' was changed or deleted" in error_of(last)
    assert server.http.get("/api/sessions/doomed").status_code == 404


def test_a_failed_write_is_said(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    chat(server, [user("Hello!")], "full")
    store = server.context.sessions._store
    assert store is not None
    monkeypatch.setattr(store, "_max_bytes", 0)
    error = refusal(server, 507, messages=[user("Hello!")], session="full")
    assert "delete some" in error
    *_, last = server.stream(
        "/api/chat", model=DEMO, messages=[user("Hello!")], session="full", think=False
    )
    assert "delete some" in error_of(last)
    assert len(stored(server, "full")) == 2
    monkeypatch.undo()
    assert server.http.delete("/api/sessions/full").status_code == 200


def test_a_history_has_an_end(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.sessions.turns.MAX_MESSAGES", 4)
    for _ in range(2):
        chat(server, [user("Hello!")], "long")
    assert "go on in another" in refusal(server, 400, messages=[user("x")], session="long")
    monkeypatch.setattr("server.sessions.turns.MAX_MESSAGES", 1000)
    large = user("x" * (4 << 20))
    assert "4 MB" in refusal(server, 400, messages=[large], session="long")
    assert len(stored(server, "long")) == 4
