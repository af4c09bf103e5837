"""Embeddings over HTTP: shapes, lengths, errors, and what they do beside chats."""

from __future__ import annotations

import json
import math
import threading
from itertools import pairwise

import httpx
import numpy as np
import ollama
import pytest
import torch

from rwkv_core import Model, State, load_model
from server.store.demo_model import DEMO_FILE
from tests.tools.running_server import (
    DEMO,
    ENDLESS,
    TIMEOUT_S,
    RunningServer,
    needs_demo,
    wait_until,
)

TEXTS = ["What is 47 + 38?", "What is 46 + 38?", "My name is Ada.", ""]


def _embed(server: RunningServer, **body: object) -> dict[str, object]:
    response = server.post("/api/embed", **{"model": DEMO, **body})
    assert response.status_code == 200, response.text
    value = response.json()
    assert isinstance(value, dict)
    return value


def _vectors(answer: dict[str, object]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.array(answer["embeddings"])


@needs_demo
def test_the_vectors_are_the_final_hidden_states_of_last_tokens(server: RunningServer) -> None:
    model = load_model(DEMO_FILE, kernels=False)
    answer = _embed(server, input=TEXTS[:3])
    assert list(answer) == [
        "model", "embeddings", "total_duration", "load_duration", "prompt_eval_count",
    ]  # fmt: skip
    num_tokens = 0
    for vector, text in zip(_vectors(answer), TEXTS, strict=False):
        tokens = model.tokenizer.encode(text)
        num_tokens += len(tokens)
        state = model.new_state()
        model.advance(tokens[:-1], state)
        hidden = model.final_hidden(tokens[-1:], [state])[0]
        expected = (hidden / hidden.norm()).double().numpy()
        assert math.isclose(np.linalg.norm(vector), 1, rel_tol=1e-5)
        assert float(vector @ expected) > 0.999  # the kernels round activations to 8 bits
    assert answer["prompt_eval_count"] == num_tokens


@needs_demo
def test_texts_that_say_alike_are_near(server: RunningServer) -> None:
    first, second, other, empty = _vectors(_embed(server, input=TEXTS))
    assert first @ second > first @ other
    assert math.isclose(np.linalg.norm(empty), 1, rel_tol=1e-5)


def test_a_text_has_the_same_vector_alone_and_among_others(server: RunningServer) -> None:
    together = _embed(server, input=[text * 9 for text in TEXTS])
    alone = [_embed(server, input=text * 9)["embeddings"] for text in TEXTS[:3]]
    assert [[vector] for vector in together["embeddings"]][:3] == alone  # type: ignore[attr-defined]


def test_dimensions_cut_and_normalise_again(server: RunningServer) -> None:
    whole = _vectors(_embed(server, input=TEXTS[0]))[0]
    cut = _vectors(_embed(server, input=TEXTS[0], dimensions=16))[0]
    np.testing.assert_allclose(cut, whole[:16] / np.linalg.norm(whole[:16]), rtol=1e-5)
    for more in (0, -1, 10_000):
        assert len(_vectors(_embed(server, input=TEXTS[0], dimensions=more))[0]) == len(whole)


@pytest.mark.parametrize("given", [None, "", []])
def test_no_input_loads_the_model(server: RunningServer, given: object) -> None:
    server.unload_all()
    assert _embed(server, input=given) == {"model": DEMO, "embeddings": []}
    assert [each["name"] for each in server.http.get("/api/ps").json()["models"]] == [
        f"{DEMO}:latest"
    ]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/embed", {"model": DEMO, "input": 5}, 400, "invalid input type"),
        ("/api/embed", {"model": DEMO, "input": ["a", 5]}, 400, "invalid input type"),
        ("/api/embed", {"model": DEMO, "input": {"a": 1}}, 400, "invalid input type"),
        ("/api/embed", {"model": DEMO, "input": ["a"] * 10_001}, 400,
         "input has 10001 texts; send at most 10000 at a time"),
        ("/api/embed", {"model": "no-such", "input": "a"}, 404,
         'model "no-such" not found, try pulling it first'),
        ("/api/embeddings", {"model": "no-such", "prompt": "a"}, 404,
         'model "no-such" not found, try pulling it first'),
        ("/api/embed", {"input": "a"}, 404, "model '' not found"),
        ("/api/embeddings", {"prompt": "a"}, 400, "model is required"),
        ("/api/embed", {"model": DEMO, "input": "a", "dimensions": "5"}, 400,
         "json: cannot unmarshal string into Go struct field EmbedRequest.dimensions of type int"),
        ("/api/embed", {"model": DEMO, "input": "a", "options": {"num_ctx": "x"}}, 400,
         'option "num_ctx" must be of type integer'),
    ],
)  # fmt: skip
def test_errors_word_for_word(
    server: RunningServer, path: str, body: dict[str, object], status: int, words: str
) -> None:
    response = server.post(path, **body)
    assert (response.status_code, response.json()) == (status, {"error": words})


def test_the_old_route_and_the_official_client(
    server: RunningServer, client: ollama.Client
) -> None:
    new = client.embed(DEMO, ["Hello there"]).embeddings[0]
    assert client.embeddings(DEMO, "Hello there").embedding == list(new)
    assert server.post("/api/embeddings", model=DEMO, prompt="").json() == {"embedding": []}


def test_chats_go_on_beside_many_texts(server: RunningServer) -> None:
    """Texts are read through the same passes; a chat that streams gets its tokens in between."""
    texts = [f"{'word ' * 300}{number}" for number in range(40)]
    done = threading.Event()
    answers: list[dict[str, object]] = []

    def embed() -> None:
        answers.append(_embed(server, model=ENDLESS, input=texts))
        done.set()

    worker = threading.Thread(target=embed)
    with server.http.stream(
        "POST", "/api/generate", json={"model": ENDLESS, "prompt": "a"}
    ) as chat:
        lines = chat.iter_lines()
        next(lines)
        worker.start()
        num_lines = 0
        while not done.is_set():
            assert not json.loads(next(lines))["done"]
            num_lines += 1
    worker.join(TIMEOUT_S)
    assert num_lines > 10
    vectors = _vectors(answers[0])
    assert len(vectors) == len(texts)
    assert any(not np.array_equal(one, other) for one, other in pairwise(vectors))


def test_a_client_that_goes_away_ends_the_reading(server: RunningServer) -> None:
    texts = ["word " * 20_000] * 50
    with (
        httpx.Client(base_url=server.url, timeout=0.5) as impatient,
        pytest.raises(httpx.TimeoutException),
    ):
        impatient.post("/api/embed", json={"model": ENDLESS, "input": texts})
    engines = [each.engine for each in server.context.manager.loaded()]
    wait_until(lambda: all(engine.load.num_running == 0 for engine in engines))
    assert _embed(server, model=ENDLESS, input="still there")["prompt_eval_count"] == 11


def test_a_hidden_state_that_fails_ends_its_own_text_only(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Model.final_hidden
    poisoned = ord("!") + 1  # its token: ids are bytes plus 1

    def fail(model: Model, token_ids: list[int], states: list[State]) -> torch.Tensor:
        if poisoned in token_ids:
            raise RuntimeError("injected")
        return whole(model, token_ids, states)

    monkeypatch.setattr(Model, "final_hidden", fail)
    results: dict[str, httpx.Response] = {}

    def ask(text: str) -> None:
        results[text] = server.post("/api/embed", model=ENDLESS, input=text)

    threads = [threading.Thread(target=ask, args=(text,)) for text in ("good", "bad!", "fine")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert results["bad!"].status_code == 500
    assert "injected" in results["bad!"].json()["error"]
    assert results["good"].status_code == results["fine"].status_code == 200
