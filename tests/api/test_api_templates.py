"""Models with templates of their own, through a real server."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.gguf_writer import MetadataValue
from rwkv_core.engine import Engine
from server.chat_templates import jinja_process
from server.chat_templates.jinja_process import JinjaProcess
from server.settings import Settings
from server.store.demo_model import DEMO_FILE
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import ModelParts, open_model, write_model
from tests.tools.running_server import (
    ENDLESS,
    RunningServer,
    needs_demo,
    running,
    wait_until,
)
from tests.tools.server_models import BYTES
from tests.tools.written_templates import CHATML, LEGACY, TOOLS

GREEDY = {"temperature": 0, "num_predict": 8}
HELLO = [{"role": "user", "content": "Hello!"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}},
}
INSERT = "{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ else }}{{ .Prompt }}{{ end }}"
ENDLESS_LOOP = "{{ range 100000 }}{{ range 100000 }}{{ end }}{{ end }}{{ .Prompt }}"
TEMPLATES = {
    "chatml": CHATML,
    "legacy": LEGACY,
    "tools": TOOLS,
    "insert": INSERT,
    "looping": ENDLESS_LOOP,
    "broken": "line one\n{{ range }}",
    "trivial": "{{ .Prompt }}",
}
# In the file of a model whose name fits no built-in format.
JINJA_TEMPLATES = {
    "jinja": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "jinja-looping": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}"
    "{% endfor %}",
    "jinja-broken": "\n{% for %}",
}


# Of a turn that is over, which shows the tags.
THOUGHT = "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}"
# The demo model speaks and thinks in these words.
SPOKEN = "{{ range .Messages }}" + THOUGHT + "User: {{ .Content }}\n\n{{ end }}Assistant:"
# They end in the opening tag, in a part of it, before it, or behind a thought that is closed.
DEMO_TEMPLATES = {
    "demo-open": SPOKEN + " <think>",
    "demo-half": SPOKEN + " <thi",
    "demo-none": SPOKEN + " ",
    "demo-closed": SPOKEN + " <think></think>",
    "demo-chatml": CHATML.replace("{{ .Content }}", THOUGHT + "{{ .Content }}") + "<think>",
}
AGE = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the endless model under several names, each with another template."""
    folder = tmp_path_factory.mktemp("templates")
    shutil.copytree(models, folder, dirs_exist_ok=True)
    store = Store(folder)
    endless = open_model(store, ModelName.parse(ENDLESS))
    assert endless is not None
    blob = store.add_blob(endless.path)
    for name, template in TEMPLATES.items():
        write_model(store, ModelName.parse(name), blob, ModelParts(template=template))
    for name, template in JINJA_TEMPLATES.items():
        file = folder / f"{name}.gguf"
        with closing(open_checkpoint(endless.path)) as checkpoint:
            metadata: dict[str, MetadataValue] = {"tokenizer.chat_template": template}
            convert_to_gguf(checkpoint, BYTES, file, name=name, extra_metadata=metadata)
        write_model(store, ModelName.parse(name), store.add_blob(file), ModelParts())
    if DEMO_FILE.is_file():
        blob = store.add_blob(DEMO_FILE)
        for name, template in DEMO_TEMPLATES.items():
            write_model(store, ModelName.parse(name), blob, ModelParts(template=template))
    with running(Settings(models=folder, device="cpu")) as server:
        yield server


def rendered(server: RunningServer, path: str, **body: Any) -> str:
    answer = server.answer(path, _debug_render_only=True, **body)
    return str(answer["_debug_info"]["rendered_template"])


def refusal(server: RunningServer, path: str, **body: Any) -> tuple[int, str]:
    response = server.post(path, **body)
    return response.status_code, response.json()["error"]


def test_the_models_template_makes_the_prompt(server: RunningServer) -> None:
    messages = [{"role": "system", "content": "S\n\nT"}, *HELLO]
    assert rendered(server, "/api/chat", model="chatml", messages=messages) == (
        "<|im_start|>system\nS\n\nT<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert rendered(server, "/api/chat", model="legacy", messages=messages) == (
        "[S] S\n\nT\n[U] Hello!\n[A] "
    )
    assert rendered(server, "/api/generate", model="legacy", prompt="Hi", system="S") == (
        "[S] S\n[U] Hi\n[A] "
    )
    built_in = rendered(server, "/api/generate", model=ENDLESS, prompt="Hi")
    assert rendered(server, "/api/generate", model="trivial", prompt="Hi") == built_in


def test_the_template_of_a_request_comes_first(server: RunningServer) -> None:
    for model in ("chatml", ENDLESS):
        body = {"model": model, "prompt": "Hi", "system": "S"}
        assert (
            rendered(server, "/api/generate", template="<{{ .System }}|{{ .Prompt }}>", **body)
            == "<S|Hi>"
        )
    answer = server.answer(
        "/api/generate", model=ENDLESS, prompt="Hi", template="{{ .Prompt }}", options=GREEDY
    )
    assert answer["prompt_eval_count"] == len("Hi")


def test_context_goes_before_the_rendered_prompt(server: RunningServer) -> None:
    body = {"model": "legacy", "system": "S"}
    first = server.answer("/api/generate", prompt="Hi", options=GREEDY, **body)
    text = rendered(server, "/api/generate", prompt="Bye", context=first["context"], **body)
    assert text.startswith("[S] S\n[U] Hi\n[A] ")
    assert text.endswith("[U] Bye\n[A] ")
    assert text.count("[S]") == 1


def test_capabilities_and_show(server: RunningServer) -> None:
    listed = {each["name"]: each for each in server.http.get("/api/tags").json()["models"]}
    expected = {
        "chatml": ["completion"],
        "tools": ["completion", "tools", "thinking"],
        "insert": ["completion", "insert"],
        "broken": ["completion"],
    }
    for name, capabilities in expected.items():
        shown = server.post("/api/show", model=name).json()
        assert shown["capabilities"] == capabilities
        assert shown["template"] == TEMPLATES[name]
        assert f"{name}:latest" in listed


def test_suffix(server: RunningServer) -> None:
    body = {"model": "insert", "prompt": "def f(", "suffix": "return 1"}
    assert rendered(server, "/api/generate", **body) == "<P>def f(<S>return 1<M>"
    answer = server.answer("/api/generate", options=GREEDY, **body)
    assert answer["eval_count"] == GREEDY["num_predict"]
    status, error = refusal(server, "/api/generate", **(body | {"model": "chatml"}))
    assert (status, error) == (
        400,
        "registry.ollama.ai/library/chatml:latest does not support insert",
    )


def test_thinking_and_tools(server: RunningServer) -> None:
    body = {"model": "tools", "messages": HELLO}
    thinking = rendered(server, "/api/chat", **body)
    assert rendered(server, "/api/chat", think=True, **body) == thinking
    assert rendered(server, "/api/chat", think=False, **body) == f"{thinking}<think></think>"
    assert '{"type":"function","function":{"name":"weather"' in rendered(
        server, "/api/chat", tools=[WEATHER], **body
    )
    assert refusal(server, "/api/chat", model="chatml", messages=HELLO, think=True) == (
        400, '"chatml" does not support thinking',
    )  # fmt: skip
    assert refusal(server, "/api/chat", model="chatml", messages=HELLO, tools=[WEATHER]) == (
        400, "registry.ollama.ai/library/chatml:latest does not support tools",
    )  # fmt: skip


def has_read_ahead(engine: Engine, num_times: int) -> bool:
    return engine.load.is_idle and engine.load.num_read_ahead >= num_times


@pytest.mark.parametrize("model", ["chatml", "legacy", "tools", "jinja"])
def test_a_turn_reads_what_is_new_in_it(server: RunningServer, model: str) -> None:
    system = {"role": "system", "content": f"{model}: a long text that nobody wants to read twice"}
    messages: list[dict[str, Any]] = [system, *HELLO]
    body = {"model": model, "options": GREEDY}
    server.answer("/api/chat", model=model, messages=[])  # loads it
    engine = server.context.manager.loaded()[0].engine
    num_read_ahead = engine.load.num_read_ahead
    for turn in range(3):
        answer = server.answer("/api/chat", messages=messages, **body)
        num_read_ahead += 1
        wait_until(partial(has_read_ahead, engine, num_read_ahead))
        if turn:
            text = rendered(server, "/api/chat", messages=messages, **body)
            num_known = len(text[: text.rindex(messages[-1]["content"])].encode())
            # The model's tokens are bytes; the last one of what is the same may be read again.
            assert answer["prompt_cached_count"] >= num_known - 1
        messages += [answer["message"], {"role": "user", "content": f"And {turn}?"}]


def test_another_chat_with_the_same_system_text_reuses_it(server: RunningServer) -> None:
    system = {"role": "system", "content": "One system text for many chats."}
    for text in ("What is this?", "Something else."):
        answer = server.answer(
            "/api/chat", model="chatml", options=GREEDY,
            messages=[system, {"role": "user", "content": text}],
        )  # fmt: skip
    assert answer["prompt_cached_count"] >= len("<|im_start|>system\n") + len(system["content"])


def test_a_template_that_loops_ends_in_an_error_while_others_go_on(server: RunningServer) -> None:
    answers: list[tuple[int, str]] = []
    looping = threading.Thread(
        target=lambda: answers.append(refusal(server, "/api/generate", model="looping", prompt="x"))
    )
    looping.start()
    for _ in range(3):
        others = server.answer("/api/generate", model=ENDLESS, prompt="Hi", options=GREEDY)
        assert others["eval_count"] == GREEDY["num_predict"]
    assert looping.is_alive(), "the others did not wait for it"
    looping.join(120)
    assert answers == [(400, "template takes longer than 5 s")]


def test_a_broken_template_says_where(server: RunningServer) -> None:
    expected = (400, "template: :2: missing value for range")
    assert refusal(server, "/api/chat", model="broken", messages=HELLO) == expected
    assert refusal(server, "/api/generate", model="broken", prompt="x") == expected


def test_the_template_in_the_file(server: RunningServer) -> None:
    messages = [{"role": "system", "content": "S"}, *HELLO]
    text = "[system]S[user]Hello![assistant]"
    assert rendered(server, "/api/chat", model="jinja", messages=messages) == text
    assert rendered(server, "/api/generate", model="jinja", prompt="Hello!", system="S") == text
    assert server.post("/api/show", model="jinja").json()["template"] == JINJA_TEMPLATES["jinja"]
    status, error = refusal(server, "/api/chat", model="jinja-broken", messages=HELLO)
    assert (status, error[:23]) == (400, "chat_template: line 2: ")
    assert error.endswith("; a TEMPLATE in a Modelfile would replace it")


def test_a_jinja_template_that_loops_is_ended(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jinja_process, "PROCESS", JinjaProcess(max_seconds=2))
    assert refusal(server, "/api/chat", model="jinja-looping", messages=HELLO) == (
        400, "chat_template: it takes longer than 2 s, or too much memory",
    )  # fmt: skip
    assert rendered(server, "/api/chat", model="jinja", messages=HELLO) == "[user]Hello![assistant]"
    jinja_process.PROCESS.close()


def test_a_session_goes_on_through_the_template(server: RunningServer) -> None:
    body = {"model": "chatml", "session": "templated", "options": GREEDY}
    first = server.answer("/api/chat", messages=HELLO, **body)
    reply = first["message"]["content"]
    said = [{"role": "user", "content": "And?"}]
    assert rendered(server, "/api/chat", messages=said, **body) == (
        "<|im_start|>user\nHello!<|im_end|>\n"
        f"<|im_start|>assistant\n{reply}<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )
    state = server.http.get("/api/sessions/templated/state")
    assert state.status_code == 200, state.text


@needs_demo
@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("model", DEMO_TEMPLATES)
def test_a_format_behind_a_thought_through_a_template(
    server: RunningServer, model: str, think: bool
) -> None:
    messages = [{"role": "user", "content": "My name is Ada and I am 36."}]
    for seed in range(3):
        answer = server.answer(
            "/api/chat", model=model, messages=messages, format=AGE, think=think,
            options={"seed": seed, "num_predict": 600},
        )  # fmt: skip
        assert answer["done_reason"] == "stop"
        jsonschema.validate(json.loads(answer["message"]["content"]), AGE)
        has_thought = think and model != "demo-closed"
        assert bool(answer["message"].get("thinking")) is has_thought


def test_a_format_through_the_template_of_an_endless_model(server: RunningServer) -> None:
    """Its tokens are bytes and its texts noise: a thought that it must begin never ends."""
    flags = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}
    for model, think in (("chatml", None), ("legacy", None), ("tools", False), ("jinja", None)):
        body = {"model": model, "messages": HELLO, "format": flags, "think": think}
        message = server.answer("/api/chat", **body)["message"]
        jsonschema.validate(json.loads(message["content"]), flags)
        assert "thinking" not in message
    body = {"model": "tools", "messages": HELLO, "format": flags}
    answer = server.answer("/api/chat", options={"num_predict": 60}, **body)
    assert answer["message"]["thinking"]
    assert answer["message"]["content"] == ""
    assert answer["done_reason"] == "length"
