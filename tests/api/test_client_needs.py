"""What clients insist on, model by model, and that no history is cut without a word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.store.names import ModelName
from server.store.stored_model import ModelParts, write_model
from tests.tools.running_server import DEMO, ENDLESS, RunningServer
from tests.tools.server_models import write_endless_gguf

SHORT = "short-sighted"
TRAINING_LENGTH = 16
WORDS = ("family", "format", "parameter_size", "quantization_level")


@pytest.fixture(scope="module", autouse=True)
def short(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model whose file's name tells how long the texts were that it was trained on."""
    path = tmp_path_factory.mktemp("short") / "model.gguf"
    write_endless_gguf(path, name=f"RWKV-x070-World-20250211-ctx{TRAINING_LENGTH}")
    store, name = server.context.store, ModelName.parse(SHORT)
    write_model(store, name, store.add_blob(path), ModelParts())
    yield path
    store.manifest_path(name).unlink()


def show(server: RunningServer, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = server.post("/api/show", model=name).json()
    return answer


def test_no_model_lacks_what_clients_insist_on(server: RunningServer) -> None:
    """Open WebUI dies without a digest, VS Code without a version, model_info and capabilities."""
    models = server.http.get("/api/tags").json()["models"]
    names = {listed["name"] for listed in models}
    assert {f"{name}:latest" for name in (DEMO, ENDLESS, SHORT)} <= names
    for listed in models:
        shown = show(server, listed["model"])
        assert re.fullmatch("[0-9a-f]{64}", listed["digest"])
        for details in (listed["details"], shown["details"]):
            assert all(isinstance(details[word], str) and details[word] for word in WORDS)
            assert details["families"]
        assert shown["capabilities"] == listed["capabilities"] != []
        info = shown["model_info"]
        assert info[f"{info['general.architecture']}.context_length"] > 0
        assert None not in info.values()
    assert "tools" in show(server, DEMO)["capabilities"]
    version = server.http.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    assert server.post("/v1/chat/completions", model=DEMO, **chat).status_code == 200


def test_nothing_is_cut_from_a_history(server: RunningServer) -> None:
    """An RNN has no window: not where num_ctx says so, nor behind what a model was trained on."""
    turns = [
        {"role": role, "content": f"{role} says {number}"}
        for number in range(5)
        for role in ("user", "assistant")
    ]
    options = {"num_predict": 2 * TRAINING_LENGTH, "num_ctx": 8, "num_keep": 1}
    body: dict[str, Any] = {
        "model": SHORT,
        "messages": [*turns, {"role": "user", "content": "And?"}],
        "options": options,
    }
    fields: dict[str, bool]
    texts = set()
    for fields in ({}, {"truncate": True, "shift": True}, {"truncate": False, "shift": False}):
        rendered = server.answer("/api/chat", **body, **fields, _debug_render_only=True)
        texts.add(rendered["_debug_info"]["rendered_template"])
    (text,) = texts
    assert all(turn["content"] in text for turn in turns)
    answer = server.answer("/api/chat", **body)
    assert answer["prompt_eval_count"] == len(text) > TRAINING_LENGTH  # a token for each byte
    assert answer["eval_count"] == 2 * TRAINING_LENGTH
    whole = server.answer("/api/embed", model=SHORT, input=text, options=options, truncate=True)
    assert whole["prompt_eval_count"] == len(text)


def test_who_asks_is_told_how_long_the_texts_of_its_training_were(server: RunningServer) -> None:
    info = show(server, SHORT)["model_info"]
    assert info["rwkv7.training_length"] == TRAINING_LENGTH
    assert info["rwkv7.context_length"] > TRAINING_LENGTH  # nothing is cut there
    assert "rwkv7.training_length" not in show(server, ENDLESS)["model_info"]  # nobody knows


def test_json_that_never_ends_is_given_up(server: RunningServer) -> None:
    """After ten times what a model was trained on; a num_ctx below 1 says nothing about it."""
    answer = server.answer(
        "/api/generate", model=SHORT, prompt="x", options={"num_ctx": -5},
        format={"type": "string", "minLength": 90_000},
    )  # fmt: skip
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 10 * TRAINING_LENGTH)
