"""A model's own template: how Ollama applies one in Go, Jinja ones, and which of them is used."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from rwkv_core.chat.messages import Message, Role, Think, ToolCall
from rwkv_core.checkpoint.gguf_vocabulary import BUILT_IN_CHAT_TEMPLATE
from server.chat_templates import TemplateChat, model_template
from server.chat_templates.go_chat import parse_go_template
from server.chat_templates.jinja_chat import JinjaChatTemplate
from server.chat_templates.jinja_process import JinjaProcess
from server.go_template import TemplateError
from server.store.gguf_facts import GGUFFacts
from tests.tools.written_templates import CHATML, LEGACY, TOOLS

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a <city>",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {
                "city": {"type": "string", "enum": ["Rome", 1]},
                "when": {"anyOf": [{"type": "integer"}, {"type": ["string", "null"]}]},
            },
        },
    },
}


def chat(*turns: tuple[Role, str], **more: Any) -> TemplateChat:
    return TemplateChat(tuple(Message(*turn) for turn in turns), **more)


def rendered(text: str, *turns: tuple[Role, str], **more: Any) -> str:
    return parse_go_template(text).render(chat(*turns, **more))


def test_messages_go_through_once() -> None:
    assert rendered(CHATML, ("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V")) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered(CHATML, ("user", "U"), ("assistant", "A")).endswith("<|im_start|>assistant\nA")


def test_neighbours_of_one_role_become_one_message() -> None:
    text = "{{ .System }};{{ range .Messages }}{{ .Role }}={{ .Content }};{{ end }}"
    turns: list[tuple[Role, str]] = [
        ("system", "S"), ("user", "a"), ("user", "b"), ("tool", "1"), ("tool", "2"),
        ("system", "T"),
    ]  # fmt: skip
    assert rendered(text, *turns) == ("S\n\nT;system=S;user=a\n\nb;tool=1;tool=2;system=T;")


def test_older_templates_are_rendered_for_each_exchange_and_cut_where_the_reply_begins() -> None:
    turns: list[tuple[Role, str]] = [
        ("system", "S"),
        ("user", "U"),
        ("assistant", "A"),
        ("user", "V"),
    ]
    assert rendered(LEGACY, *turns) == "[S] S\n[U] U\n[A] A\n[U] V\n[A] "
    assert rendered(LEGACY, *turns, ("assistant", "So")).endswith("[A] So"), "goes on inside"
    assert rendered(LEGACY, ("user", "U"), ("system", "S")) == "[U] U\n[A] \n[S] S\n[A] "
    assert rendered("<{{ .Prompt }}>", ("user", "U"), ("assistant", "A"), ("user", "V")) == (
        "<U>A<V>"
    ), "the reply is put at the end of a template without a place for it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a{{ .Response }}b{{ .Prompt }}c", "a"),
        ("{{ if .Prompt }}x{{ .Response }}y{{ end }}z", "x"),
        ("{{ if .Response }}no{{ end }}x{{ .Response }}z", "x"),
        ("x{{ printf `%s%s` .Response .Prompt }}z", "x%!s(MISSING)"),
        ("x{{ .Response | printf `%s` }}z", "x"),
        ("{{ range 3 }}r{{ end }}{{ with .Response }}{{ . }}{{ end }}x", "rrrx"),
    ],
)
def test_the_cut(text: str, expected: str) -> None:
    assert rendered(text, ("user", "U")) == expected


def test_tools_as_ollama_writes_them() -> None:
    schema = (
        '{"type":"function","function":{"name":"weather","description":"Of a \\u003ccity\\u003e",'
        '"parameters":{"type":"object","required":["city"],"properties":{"city":{"type":"string",'
        '"enum":["Rome",1]},"when":{"anyOf":[{"type":"integer"},{"type":["string","null"]}]}}}}}'
    )
    turn: tuple[Role, str] = ("user", "U")
    for text in ("{{ .Tools }}", "{{ json .Tools }}", "{{ $.Tools.String }}"):
        assert rendered(f"{{{{ range .Messages }}}}{{{{ end }}}}{text}", turn, tools=(TOOL,)) == (
            f"[{schema}]"
        )
    each = (
        "{{ range .Messages }}{{ end }}{{ range .Tools }}{{ with .Function }}{{ .Name }}("
        "{{ range $name, $p := .Parameters.Properties }}{{ $name }}: {{ toTypeScriptType $p }} "
        "{{ $p.Type }};{{ end }}){{ end }}{{ end }}"
    )
    assert rendered(each, turn, tools=(TOOL,)) == (
        "weather(city: string string;when: number | string | null ;)"
    )


def test_calls_and_results() -> None:
    messages = (
        Message("user", "U"),
        Message("assistant", "", "hm", (ToolCall("weather", {"n": 1000000, "city": "<é>"}),)),
        Message("tool", "sunny", tool_name="weather"),
    )
    text = parse_go_template(TOOLS).render(TemplateChat(messages, (TOOL,), Think.OFF))
    assert text.endswith(
        "<|start|>user<|sep|>U<|end|><|start|>assistant<|sep|><think>hm</think>"
        '<tool_call>{"name": "weather", "arguments": {"city":"\\u003cé\\u003e","n":1000000}}'
        "</tool_call><|end|><|start|>tool<|sep|>sunny<|end|><|start|>assistant<|sep|><think></think>"
    )


def test_the_ids_of_calls_and_of_their_results() -> None:
    messages = (
        Message("assistant", tool_calls=(ToolCall("weather", {}, "call_1"),)),
        Message("tool", "sunny", tool_name="weather", tool_call_id="call_1"),
        Message("tool", "late"),
    )
    go = "{{ range .Messages }}{{ range .ToolCalls }}{{ .ID }}={{ end }}{{ .ToolCallID }}|{{ end }}"
    assert parse_go_template(go).render(TemplateChat(messages)) == "call_1=|call_1||"
    jinja = (
        "{% for m in messages %}{% for call in m.tool_calls %}{{ call.id }}={% endfor %}"
        "{{ m.tool_call_id }}|{% endfor %}"
    )
    assert JinjaChatTemplate(jinja, "", "").render(TemplateChat(messages)) == "call_1=|call_1||"


@pytest.mark.parametrize(
    ("text", "tags", "tool_tag", "can_insert"),
    [
        (TOOLS, ("<think>", "</think>"), "<tool_call>", False),
        (CHATML, None, None, False),
        ("{{ range .Messages }}<{{ if .Thinking }}think>{{ .Thinking }}</think>{{ end }}{{ end }}",
         ("<think>", "</think>"), None, False),
        ("{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}{{ end }}", None, None, True),
        ("{{ .Tools }}", None, "{", False),
        ("{{ .Thinking }}<a>{{ .Thinking }}</a>", None, None, False),
        ("{{ range .Messages }}[T]{{ .Thinking }}[/T]{{ end }}", ("[T]", "[/T]"), None, False),
        ("{{ range .Tools }}{{ end }}{{ range .Messages }}{{ if .ToolCalls }} [CALLS] [{{ end }}"
         "{{ end }}", None, "[CALLS] [", False),
    ],
)  # fmt: skip
def test_what_a_template_can_do(
    text: str, tags: tuple[str, str] | None, tool_tag: str | None, can_insert: bool
) -> None:
    template = parse_go_template(text)
    assert template.thinking_tags == tags
    assert (template.tool_tag, template.can_insert) == (tool_tag, can_insert)


def test_insert() -> None:
    template = parse_go_template("<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ .Response }}")
    assert template.render_insert("a", "b", None) == "<P>a<S>b<M>"


JINJA = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking %} <think>{% endif %}"
    "{% endif %}"
)


def jinja(text: str, *turns: tuple[Role, str], **more: Any) -> str:
    return JinjaChatTemplate(text, "<s>", "</s>").render(chat(*turns, **more))


def test_jinja() -> None:
    assert jinja(JINJA, ("user", " U "), think=Think.ON) == "<s>[user] U\n[assistant] <think>"
    assert jinja(JINJA, ("user", "U"), ("assistant", "So far")) == "<s>[user] U\n[assistant] So far"
    assert json.loads(jinja("{{ tools | tojson(indent=2) }}", ("user", "<"), tools=(TOOL,))) == [
        TOOL
    ]
    assert len(jinja("{{ strftime_now('%Y') }}", ("user", "U"))) == 4
    looped = (
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    )
    assert jinja(looped, ("user", "a"), ("assistant", "b"), ("user", "c")) == "ab"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n{% if %}", "line 2"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ nothing.of.this }}", "undefined"),
        ("{{ 'a' * 10 ** 11 }}", "too much memory"),
        ("{{ range(10 ** 9) }}", "too big"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ " + "(" * 3000, "nested too deep"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deep"),
    ],
)
def test_jinja_errors_are_one_line(text: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as refused:
        jinja(text, ("user", "U"))
    assert str(refused.value).startswith("chat_template: ")


def test_jinja_that_never_ends_is_ended_and_the_next_one_is_served() -> None:
    process = JinjaProcess(max_seconds=1.0)
    loops = (
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
        "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
        "{% for i in range(90000) %}{{ 'x' * 100000 }}{% endfor %}",
    )
    try:
        for text in loops:
            start = time.monotonic()
            with pytest.raises(TemplateError, match=r"takes longer|writes more"):
                process.render(text, {})
            assert time.monotonic() - start < 30
            assert process.render("{{ a }}", {"a": 1}) == "1"
    finally:
        process.close()


def test_threads_share_the_process_of_jinja() -> None:
    process = JinjaProcess()
    answers: dict[int, str] = {}
    threads = [
        threading.Thread(
            target=lambda n=n: answers.update({n: process.render("{{ n }}", {"n": n})})
        )
        for n in range(8)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        process.close()
    assert answers == {n: str(n) for n in range(8)}


FACTS = GGUFFacts({"tokenizer.chat_template": JINJA}, ())


@pytest.mark.parametrize(
    ("go_text", "facts", "name", "expected"),
    [
        ("{{ .System }} {{ .Prompt }}", FACTS, "rwkv7-g1", "go"),
        ("{{ .Prompt }}", FACTS, "rwkv7-g1", "built-in"),
        (" {{.Prompt}}\n", FACTS, "mine", "jinja"),
        ("", FACTS, "rwkv7-world", "built-in"),
        ("", FACTS, "mine", "jinja"),
        ("", replace(FACTS, metadata={"tokenizer.chat_template": "rwkv-world"}), "mine",
         "built-in"),
        ("", replace(FACTS, metadata={"tokenizer.chat_template": BUILT_IN_CHAT_TEMPLATE}), "mine",
         "built-in"),
        ("", replace(FACTS, metadata={"tokenizer.chat_template": ["{{ x }}"]}), "mine", "built-in"),
        ("", GGUFFacts({}, ()), "mine", "built-in"),
    ],
)  # fmt: skip
def test_which_template_is_used(go_text: str, facts: GGUFFacts, name: str, expected: str) -> None:
    template = model_template(go_text, facts, name)
    kinds = {go_text: "go", JINJA: "jinja"}
    assert (kinds[template.text] if template else "built-in") == expected
