"""`/api/generate`: fields, modes, options, loading and unloading."""

from __future__ import annotations

import re
from typing import Any

import ollama
import pytest

from tests.tools.running_server import DEMO, ENDLESS, RunningServer, needs_demo, wait_until
from tests.tools.server_models import BYTES

GREEDY = {"temperature": 0, "num_predict": 12}
METRICS = [
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count",
    "eval_duration",
]  # fmt: skip


def generate(server: RunningServer, **body: Any) -> dict[str, Any]:
    return server.answer("/api/generate", **({"model": ENDLESS, "options": GREEDY} | body))


def rendered(server: RunningServer, **body: Any) -> str:
    answer = server.answer("/api/generate", _debug_render_only=True, **({"model": ENDLESS} | body))
    assert list(answer) == ["model", "created_at", "response", "done", "_debug_info"]
    assert answer["done"] is False
    text = answer["_debug_info"]["rendered_template"]
    assert isinstance(text, str)
    return text


def test_a_stream(server: RunningServer) -> None:
    response = server.post("/api/generate", model=ENDLESS.upper(), prompt="Hi", options=GREEDY)
    assert response.headers["content-type"] == "application/x-ndjson"
    *chunks, final = server.stream(
        "/api/generate", model=ENDLESS.upper(), prompt="Hi", options=GREEDY
    )
    assert chunks
    for chunk in chunks:
        assert list(chunk) == ["model", "created_at", "response", "done"]
        assert chunk["model"] == ENDLESS.upper()  # as the client wrote it
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", chunk["created_at"])
        assert chunk["response"]
        assert chunk["done"] is False
    assert list(final) == [
        "model", "created_at", "response", "done", "done_reason", "context", *METRICS,
        "prompt_cached_count",
    ]  # fmt: skip
    assert (final["response"], final["done"], final["done_reason"]) == ("", True, "length")
    assert final["eval_count"] == GREEDY["num_predict"]
    assert final["prompt_eval_count"] == len(b"User: Hi\n\nAssistant:")
    assert all(isinstance(final[name], int) and final[name] > 0 for name in METRICS)
    parts = ("load_duration", "prompt_eval_duration", "eval_duration")
    assert final["total_duration"] >= sum(final[name] for name in parts)


def test_one_object_holds_the_same_text(server: RunningServer) -> None:
    chunks = server.stream("/api/generate", model=ENDLESS, prompt="Hi", options=GREEDY)
    response = server.post(
        "/api/generate", model=ENDLESS, prompt="Hi", options=GREEDY, stream=False
    )
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    whole = response.json()
    assert whole["response"] == "".join(chunk["response"] for chunk in chunks)
    assert list(whole) == list(chunks[-1])
    assert whole["context"] == chunks[-1]["context"]


def test_num_predict_and_done_reason(server: RunningServer) -> None:
    answer = generate(server, prompt="Hi", options={"num_predict": 3})
    assert (answer["eval_count"], answer["done_reason"]) == (3, "length")
    # -2 fills the context, which here is hardly larger than the prompt.
    answer = generate(server, prompt="Hi", options={"num_predict": -2, "num_ctx": 25})
    assert answer["eval_count"] == 25 - answer["prompt_eval_count"]


def test_a_stop_string_ends_the_reply_and_is_not_part_of_it(server: RunningServer) -> None:
    whole = generate(server, prompt="Hi", options=GREEDY | {"num_predict": 40})["response"]
    stop = whole[10:13]
    answer = generate(
        server, prompt="Hi", options={"temperature": 0, "num_predict": 60, "stop": [stop]}
    )
    assert answer["response"] == whole[: whole.index(stop)]
    assert answer["done_reason"] == "stop"


def test_a_seed_repeats_and_another_does_not(server: RunningServer) -> None:
    def text(seed: int) -> str:
        options = {"seed": seed, "temperature": 1.5, "top_k": 0, "top_p": 1, "num_predict": 20}
        response = generate(server, prompt="Hi", options=options)["response"]
        assert isinstance(response, str)
        return response

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_drafts_change_no_text(server: RunningServer) -> None:
    prompt = "one two three four five, " * 8
    answers = [
        generate(
            server,
            model=DEMO,
            prompt=prompt,
            raw=True,
            options={"seed": 1, "num_predict": 60, "draft_num_predict": count},
        )
        for count in (0, 1, 8, 10**9)
    ]
    assert len({answer["response"] for answer in answers}) == 1
    assert "draft_count" not in answers[0]
    for answer in answers[1:]:  # where it was worth it
        assert 0 <= answer.get("draft_accepted_count", 0) <= answer.get("draft_count", 0)
    response = server.post(
        "/api/generate", model=DEMO, prompt="x", options={"draft_num_predict": -1}
    )
    assert response.status_code == 400
    assert response.json() == {"error": "option draft_num_predict must be at least 0, not -1"}


def test_the_prompt_of_the_world_format(server: RunningServer) -> None:
    assert rendered(server, prompt=" a\r\n\n\nb ") == "User: a\nb\n\nAssistant:"
    assert rendered(server, prompt="x", system="Be brief.") == (
        "System: Be brief.\n\nUser: x\n\nAssistant:"
    )


def test_the_prompt_of_a_thinking_model(server: RunningServer) -> None:
    def end(**body: Any) -> str:
        return rendered(server, model=DEMO, prompt="x", **body).rpartition("User: ")[2]

    assert end() == end(think=True) == "x\n\nAssistant: <think"
    assert end(think=False) == "x\n\nAssistant: <think></think"
    assert end(think="low") == "x (think a bit)\n\nAssistant: <think"
    assert end(think="high") == "x (think a lot)\n\nAssistant: <think"
    assert end(think="medium") == "x\n\nAssistant: <think"


def test_raw_is_read_as_it_stands(server: RunningServer) -> None:
    prompt = "  Once \r\n\n\n upon"
    assert rendered(server, prompt=prompt, raw=True) == prompt
    answer = generate(server, prompt=prompt, raw=True)
    assert answer["prompt_eval_count"] == len(prompt)
    assert "context" not in answer
    # A thinking model's raw reply is not taken apart either.
    answer = generate(server, model=DEMO, prompt="User: hi\n\nAssistant: <think", raw=True)
    assert "thinking" not in answer


def test_context_is_every_token_of_prompt_and_reply(server: RunningServer) -> None:
    answer = generate(server, prompt="Hi", system="Be brief.")
    text = BYTES.decode(answer["context"])
    assert text == f"System: Be brief.\n\nUser: Hi\n\nAssistant:{answer['response']}"


def test_context_goes_before_the_new_prompt(server: RunningServer) -> None:
    first = generate(server, prompt="Hi", system="Be brief.")
    earlier = BYTES.decode(first["context"])
    body = {"prompt": "More", "context": first["context"]}
    expected = f"{earlier}\n\nUser: More\n\nAssistant:"
    assert rendered(server, **body) == expected
    # The same system message is not written again, another one is.
    assert rendered(server, system="Be brief.", **body) == expected
    assert rendered(server, system="Be long.", **body) == (
        f"{earlier}\n\nSystem: Be long.\n\nUser: More\n\nAssistant:"
    )
    second = generate(server, **body)
    assert second["prompt_eval_count"] == len(expected.encode())
    assert second["context"][: len(first["context"])] == first["context"]
    assert BYTES.decode(second["context"]) == expected + second["response"]


def test_loading_and_unloading_by_an_empty_prompt(server: RunningServer) -> None:
    server.unload_all()
    answer = server.post("/api/generate", model=ENDLESS)  # streaming or not makes no difference
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    loaded = answer.json()
    assert list(loaded) == ["model", "created_at", "response", "done", "done_reason"]
    assert (loaded["response"], loaded["done"], loaded["done_reason"]) == ("", True, "load")
    assert [each["name"] for each in server.http.get("/api/ps").json()["models"]] == [
        f"{ENDLESS}:latest"
    ]
    unloaded = server.post("/api/generate", model=ENDLESS, keep_alive="0s").json()
    assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")
    assert server.http.get("/api/ps").json() == {"models": []}
    # Unloading what is not loaded is no error, and does not load it.
    again = server.post("/api/generate", model=ENDLESS, keep_alive=0).json()
    assert again["done_reason"] == "unload"
    assert server.http.get("/api/ps").json() == {"models": []}


def test_keep_alive_zero_unloads_after_the_reply(server: RunningServer) -> None:
    answer = generate(server, prompt="Hi", keep_alive=0)
    assert answer["response"]
    wait_until(lambda: not server.context.manager.loaded())


def test_a_short_keep_alive_ends_by_itself(server: RunningServer) -> None:
    generate(server, prompt="Hi", keep_alive="20ms")
    wait_until(lambda: not server.context.manager.loaded())
    assert server.http.get("/api/ps").json() == {"models": []}


def test_a_loaded_model_reports_hardly_any_load_time(server: RunningServer) -> None:
    server.unload_all()
    cold = generate(server, prompt="Hi")
    warm = generate(server, prompt="Hi")
    assert 0 < warm["load_duration"] < cold["load_duration"]


@pytest.mark.parametrize("stream", [True, False])
def test_the_official_client(client: ollama.Client, stream: bool) -> None:
    if stream:
        parts = list(client.generate(ENDLESS, "Hi", stream=True, options=GREEDY))
        assert parts[-1].done_reason == "length"
        text = "".join(part.response or "" for part in parts)
    else:
        answer = client.generate(ENDLESS, "Hi", options=GREEDY)
        assert answer.eval_count == GREEDY["num_predict"]
        text = answer.response or ""
    assert text
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        client.generate("nope", "Hi")
    assert caught.value.status_code == 404


@needs_demo
def test_the_demo_thinks_and_ends_by_itself(client: ollama.Client) -> None:
    thoughtful = client.generate(DEMO, "What is 12 + 30?", options={"temperature": 0})
    assert thoughtful.thinking
    assert thoughtful.response
    assert "think" not in thoughtful.response
    assert thoughtful.done_reason == "stop"
    direct = client.generate(DEMO, "Hello!", think=False, options={"temperature": 0})
    assert direct.thinking is None
    assert direct.response
