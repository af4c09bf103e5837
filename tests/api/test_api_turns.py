"""What a turn of a chat costs: the tokens that are new in it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.loading import model_loading
from server.settings import Settings
from tests.tools.running_server import DEMO, RunningServer, needs_demo, running, wait_until

pytestmark = needs_demo

SAID = ("What is 4 + 5?", "My name is Ada.", "Hello!", "What is my name?", "What is 31 + 27?")
SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}
# "Assistant", ":", " <", "think" and the like: what a prompt has after the user's words.
A_HANDFUL = 10


@pytest.fixture
def server(models: Path) -> Iterator[RunningServer]:
    """A server of its own: nothing is cached yet."""
    with running(Settings(models=models, device="cpu")) as server:
        yield server


class Chat:
    """A client that sends the whole history at every turn, as they all do."""

    def __init__(self, server: RunningServer, **body: Any) -> None:
        self.messages: list[dict[str, Any]] = [SYSTEM]
        self._server = server
        self._body = {"model": DEMO, "options": {"seed": 3, "num_predict": 300}, **body}

    def say(self, text: str, *, is_patient: bool = True) -> dict[str, Any]:
        """The final object of the answer."""
        self.messages.append({"role": "user", "content": text})
        *chunks, final = self._server.stream("/api/chat", messages=self.messages, **self._body)
        messages = [chunk["message"] for chunk in chunks]
        content = "".join(message["content"] for message in messages)
        thinking = "".join(message.get("thinking", "") for message in messages)
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        reply = {"role": "assistant", "content": content, "thinking": thinking, "tool_calls": calls}
        self.messages.append(reply)
        if is_patient:
            engine = self._server.context.manager.loaded()[0].engine
            wait_until(lambda: engine.load.is_idle and engine.load.num_read_ahead >= self.num_turns)
        return final

    @property
    def num_turns(self) -> int:
        return sum(message["role"] == "user" for message in self.messages)


def num_read(final: dict[str, Any]) -> int:
    return int(final["prompt_eval_count"]) - int(final["prompt_cached_count"])


@pytest.mark.parametrize("think", [True, False])
def test_a_turn_reads_what_is_new_in_it(server: RunningServer, think: bool) -> None:
    chat = Chat(server, think=think)
    first = chat.say(SAID[0])
    assert first["prompt_cached_count"] == 0
    encode = server.context.manager.loaded()[0].model.tokenizer.encode
    for turn in range(1, 20):
        text = SAID[turn % len(SAID)]
        final = chat.say(text)
        num_new = len(encode(f"User: {text}\n\n"))
        assert num_read(final) <= num_new + A_HANDFUL, (turn, final)
        assert final["prompt_cached_count"] > 0


def test_a_client_that_does_not_wait_reads_the_reply_again_at_most(server: RunningServer) -> None:
    chat = Chat(server, think=False)
    chat.say(SAID[0], is_patient=False)
    encode = server.context.manager.loaded()[0].model.tokenizer.encode
    for turn in range(1, 8):
        reply = chat.messages[-1]["content"]
        text = SAID[turn % len(SAID)]
        final = chat.say(text, is_patient=False)
        num_new = len(encode(f"Assistant: {reply}\n\nUser: {text}\n\n"))
        assert num_read(final) <= num_new + A_HANDFUL, (turn, final)


def test_retry_edit_branch_and_title(server: RunningServer) -> None:
    chat = Chat(server, think=True)
    for text in SAID[:3]:
        chat.say(text)
    encode = server.context.manager.loaded()[0].model.tokenizer.encode
    history, question = chat.messages[:-2], chat.messages[-2]["content"]

    def ask(messages: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
        body = {"model": DEMO, "options": {"seed": 3, "num_predict": 300}, "think": True} | changes
        final = server.answer("/api/chat", messages=messages, **body)
        wait_until(lambda: server.context.manager.loaded()[0].engine.load.is_idle)
        return final

    # Another try at the last message reads nothing at all, and says the same with the same seed.
    again = ask(chat.messages[:-1])
    assert num_read(again) == 0
    assert again["message"]["content"] == chat.messages[-1]["content"]
    # A page asks for a title in a chat of its own: that costs the chat nothing.
    ask([{"role": "user", "content": f"Make a title of: {question}"}], think=False)
    assert num_read(ask(chat.messages[:-1])) == 0
    # The last message edited, thinking turned off, and an older turn left for another.
    edited = {"role": "user", "content": "What is 2 + 2?"}
    num_new = len(encode(f"User: {edited['content']}\n\n")) + A_HANDFUL
    assert num_read(ask([*history, edited])) <= num_new
    assert num_read(ask(chat.messages[:-1], think=False)) <= A_HANDFUL
    assert num_read(ask([*history[:3], edited])) <= num_new
    # The system prompt is what all chats share.
    assert num_read(ask([SYSTEM, edited])) <= num_new


def test_an_edit_after_a_restart(models: Path, tmp_path: Path) -> None:
    """The states of all turns are on disk, not that of the last one alone."""
    settings = Settings(models=models, device="cpu", states=tmp_path)
    with running(settings) as server:
        chat = Chat(server, think=True)
        for text in SAID[:3]:
            chat.say(text)
    edited = {"role": "user", "content": "What is 2 + 2?"}
    for num_kept in (5, 3, 1):  # of the system message and two messages a turn
        with running(settings) as server:
            history = [*chat.messages[:num_kept], edited]
            body = {"model": DEMO, "options": {"seed": 3, "num_predict": 1}, "think": True}
            final = server.answer("/api/chat", messages=history, **body)
            encode = server.context.manager.loaded()[0].model.tokenizer.encode
            num_new = len(encode(f"User: {edited['content']}\n\n"))
            assert num_read(final) <= num_new + A_HANDFUL, num_kept


def test_states_that_only_the_disk_has_still(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forks and edits some turns back, where memory has what is newest alone; also of a session
    that came from a file, whose states are its own.
    """
    monkeypatch.setattr(model_loading, "_SUPERSEDED_BYTES", 0)
    monkeypatch.setattr(model_loading, "memory_budget", lambda *_: 64 << 20)
    settings = Settings(models=models, device="cpu", states=tmp_path, states_disk=1 << 30)
    with running(settings) as server:
        chat = Chat(server, session="long", think=False)
        for text in SAID[:3]:
            chat.say(text)
        (loaded,) = server.context.manager.loaded()
        saved = server.http.get("/api/sessions/long/state").content
        assert server.http.put("/api/sessions/moved/state", content=saved).status_code == 201
        moved = Chat(server, session="moved", think=False)
        moved.messages = [*chat.messages]
        moved.say(SAID[3])
        question = {"role": "user", "content": "What is 2 + 2?"}
        num_new = len(loaded.model.tokenizer.encode(f"User: {question['content']}\n\n")) + A_HANDFUL
        num_disk_hits = loaded.cache.statistics().num_disk_hits
        body = {"model": DEMO, "options": {"temperature": 0, "num_predict": 20}, "think": False}
        for trunk, at in (("long", 5), ("long", 3), ("moved", 7)):
            name = f"{trunk}-{at}"
            fork = server.post(f"/api/sessions/{trunk}/fork", session=name, at=at)
            assert fork.status_code == 200, fork.text
            forked = server.answer("/api/chat", messages=[question], session=name, **body)
            assert num_read(forked) <= num_new, name
            history = [*moved.messages[:at], question]
            edited = server.answer("/api/chat", messages=history, **body)
            assert edited["message"]["content"] == forked["message"]["content"]
        assert loaded.cache.statistics().num_disk_hits >= num_disk_hits + 3
        del loaded  # a server that stops waits for its models to be freed


def test_equal_prompts_at_once_are_read_once(server: RunningServer) -> None:
    """Whoever comes second waits for the first one's states, or finds them."""
    system = {
        "role": "system",
        "content": "You know these sums. " + "What is 4 + 5? It is 9. " * 60,
    }
    body: dict[str, Any] = {
        "model": DEMO,
        "messages": [system, {"role": "user", "content": SAID[0]}],
        "options": {"temperature": 0, "num_predict": 8},
    }
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda _: server.answer("/api/chat", **body), range(4))]
    num_prompt = answers[0]["prompt_eval_count"]
    assert sorted(map(num_read, answers)) == [0, 0, 0, num_prompt]
    assert {answer["message"]["content"] for answer in answers} == {
        server.answer("/api/chat", **body)["message"]["content"]
    }


def test_a_chat_with_tools(server: RunningServer) -> None:
    weather = {
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
    chat = Chat(server, think=False, tools=[weather])
    chat.say("What is the weather in Paris?")
    assert chat.messages[-1]["tool_calls"]
    encode = server.context.manager.loaded()[0].model.tokenizer.encode
    chat.messages.append(
        {"role": "tool", "tool_name": "get_weather", "content": "sunny, 21 degrees"}
    )
    *chunks, final = server.stream(
        "/api/chat", model=DEMO, messages=chat.messages, tools=[weather], think=False
    )
    assert chunks
    num_new = len(encode("User: Function output:\nsunny, 21 degrees\n\n"))
    assert num_read(final) <= num_new + A_HANDFUL


def test_a_context_is_not_read_again(server: RunningServer) -> None:
    body: dict[str, Any] = {"model": DEMO, "options": {"seed": 1, "num_predict": 300}}
    first = server.answer("/api/generate", prompt=SAID[0], **body)
    engine = server.context.manager.loaded()[0].engine
    wait_until(lambda: engine.load.is_idle and engine.load.num_read_ahead >= 1)
    second = server.answer("/api/generate", prompt=SAID[1], context=first["context"], **body)
    encode = server.context.manager.loaded()[0].model.tokenizer.encode
    assert num_read(second) <= len(encode(f"\n\nUser: {SAID[1]}\n\n")) + A_HANDFUL
