"""Prompts are byte for byte what the models were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_core.chat.messages import Message, Think, ToolCall
from rwkv_core.chat.prompt_format import PromptFormat, choose_prompt_format, load_prompt_formats
from rwkv_core.chat.render import chat_parts, clean_text, render_chat
from rwkv_core.errors import OptionError
from rwkv_core.settings import config_dir

G1 = choose_prompt_format("rwkv7-g1a-0.4b")
WORLD = choose_prompt_format("world")
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather\nof a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": ["integer", "null"]},
            },
            "required": ["city"],
        },
    },
}


def user(text: str) -> Message:
    return Message("user", text)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("rwkv7-demo:latest",), "g1"),
        (("rwkv7-g1",), "g1"),
        (("RWKV7-G1d-2.9B-20251119-ctx8192",), "g1"),
        (("rwkv7a4-g1a4_0.1b",), "g1"),
        (("mine", "rwkv7-g1c-1.5b.gguf"), "g1"),
        (("RWKV-x070-World-1.5B-v3",), "world"),
        (("anything",), "world"),
        (("big1", "blog1"), "world"),
        ((), "world"),
    ],
)
def test_format_is_chosen_by_name(names: tuple[str, ...], expected: str) -> None:
    assert choose_prompt_format(*names).name == expected


@pytest.mark.parametrize(
    ("fmt", "think", "end"),
    [
        (G1, None, "Assistant: <think"),
        (G1, Think.ON, "Assistant: <think"),
        (G1, Think.MEDIUM, "Assistant: <think"),
        (G1, Think.OFF, "Assistant: <think></think"),
        (G1.without_thinking(), None, "Assistant:"),
        (WORLD, None, "Assistant:"),
        (WORLD, Think.ON, "Assistant:"),
    ],
)
def test_end_of_prompt(fmt: PromptFormat, think: Think | None, end: str) -> None:
    assert render_chat(fmt, [user("Hello")], think=think) == f"User: Hello\n\n{end}"


@pytest.mark.parametrize(
    ("think", "suffix"),
    [(Think.LOW, " (think a bit)"), (Think.HIGH, " (think a lot)"), (Think.MAX, " (think a lot)")],
)
def test_levels_end_the_last_user_turn(think: Think, suffix: str) -> None:
    messages = [user("One"), Message("assistant", "Yes"), user("Two")]
    assert render_chat(G1, messages, think=think) == (
        f"User: One\n\nAssistant: Yes\n\nUser: Two{suffix}\n\nAssistant: <think"
    )
    assert suffix not in render_chat(WORLD, messages, think=think)


def test_history_has_no_thoughts() -> None:
    messages = [
        Message("system", "Be brief."),
        user("One"),
        Message("assistant", " Fine. \n", thinking="hmm"),
        user("Two"),
    ]
    assert render_chat(WORLD, messages) == (
        "System: Be brief.\n\nUser: One\n\nAssistant: Fine.\n\nUser: Two\n\nAssistant:"
    )


def test_text_is_cleaned_as_the_authors_do() -> None:
    assert clean_text("\n a\r\n\r\n\n    b\n\tc \n\n") == "a\n    b\n\tc"


@given(st.lists(st.sampled_from(["a", " ", "\n", "\r\n", "\t", "\r"])).map("".join))
def test_no_user_text_can_end_its_turn(text: str) -> None:
    prompt = render_chat(WORLD, [user(f"x{text}x")])
    assert prompt.count("\n\n") == 1


def test_tools_are_offered_called_and_answered() -> None:
    messages = [
        Message("system", "Be brief."),
        user("Weather in Rome?"),
        Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Rome"}),)),
        Message("tool", '{"temperature": 20}', tool_name="get_weather"),
    ]
    assert render_chat(G1, messages, think=Think.OFF, tools=[WEATHER]) == (
        "System: Be brief.\n\n"
        "System: Tools:\n"
        '- get_weather(city: string, unit?: "C" | "F", days?: integer | null): '
        "Get the weather of a city\n"
        "Return only a JSON function call.\n\n"
        "User: Weather in Rome?\n\n"
        'Assistant: ```json\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n```\n\n'
        'User: Function output:\n{"temperature": 20}\n\n'
        "Assistant: <think></think"
    )


def test_forced_tool_call_opens_the_fence() -> None:
    prompt = render_chat(G1, [user("Hi")], tools=[WEATHER["function"]], force_tool_call=True)
    assert prompt.startswith("System: Tools:\n- get_weather(")
    assert prompt.endswith("User: Hi\n\nAssistant: ```json")


def test_tools_of_clients_that_leave_things_out() -> None:
    tools: list[dict[str, object]] = [
        {"function": {"name": "now"}},
        {"name": "f", "parameters": {}},
    ]
    assert "System: Tools:\n- now()\n- f()\nReturn" in render_chat(G1, [user("Hi")], tools=tools)


def test_a_last_assistant_message_is_continued() -> None:
    messages = [user("Count"), Message("assistant", "One, two,")]
    assert render_chat(G1, messages) == "User: Count\n\nAssistant: One, two,"


def test_parts_mark_the_replies() -> None:
    messages = [user("One"), Message("assistant", "Yes"), user("Two"), Message("assistant", "")]
    parts = chat_parts(WORLD, [*messages, user("Three")])
    assert [part.text for part in parts if part.is_reply] == [" Yes", ""]
    assert "".join(part.text for part in parts).endswith(
        "User: Two\n\nAssistant:\n\nUser: Three\n\nAssistant:"
    )


def test_shipped_formats_stop_at_the_next_turn() -> None:
    formats = load_prompt_formats()
    assert formats[-1].name == "world"
    assert {each.name for each in formats} == {"g1", "world"}
    assert all(each.stops == ("\n\nUser:", "\n\nSystem:") for each in formats)
    assert (G1.can_think, G1.can_use_tools) == (True, True)
    assert (WORLD.can_think, WORLD.can_use_tools) == (False, False)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("name = ", "nme = ", "`name` is missing"),
        ('system = "System:"', 'system = "System:"\nrobot = "R:"', "`turns.robot` is not a known"),
        ('user = "User:"', "user = 3", "`turns.user` must be text"),
        ("match = ['world']", "match = ['(']", "`match` holds no regular expression"),
        ("match = ['world']", "match = 'world'", "`match` must be a list"),
        ("[turns]", "[turns", "not a valid TOML file"),
        ('name = "world"', 'name = "earth"', "no prompt format is named world"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, old: str, new: str, problem: str) -> None:
    text = (config_dir() / "prompts" / "world.toml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "world.toml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(OptionError) as caught:
        load_prompt_formats(tmp_path)
    assert problem in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
