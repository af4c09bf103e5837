"""The demo's dialogues: repeatable, rendered as the server renders them, and right."""

from __future__ import annotations

import json
import re
from itertools import islice

import pytest

from rwkv_core.chat.messages import Think
from rwkv_core.chat.prompt_format import choose_prompt_format
from rwkv_core.chat.render import render_chat
from rwkv_core.demo.arithmetic import addition_steps, subtraction_steps
from rwkv_core.demo.dialogues import (
    KIND_WEIGHTS,
    MODE_WEIGHTS,
    Dialogue,
    Mode,
    generate,
    prompt_text,
    training_segments,
)
from rwkv_core.demo.judging import is_right

KINDS = tuple(KIND_WEIGHTS)


def some(kind: str | None = None, mode: Mode | None = None, count: int = 300) -> list[Dialogue]:
    return list(islice(generate(11, kind, mode), count))


def test_the_same_seed_gives_the_same_dialogues() -> None:
    assert some() == some()
    assert some() != list(islice(generate(12), 300))


def test_kinds_and_modes_are_mixed_as_told() -> None:
    dialogues = some(count=3_000)
    for kind, share in KIND_WEIGHTS.items():
        assert abs(sum(each.kind == kind for each in dialogues) / 3_000 - share) < 0.05
    special = ("tool_call", "arithmetic")
    unforced = [each for each in dialogues if each.kind not in special]
    for mode, share in MODE_WEIGHTS.items():
        assert abs(sum(each.mode is mode for each in unforced) / len(unforced) - share) < 0.05
    assert all((each.kind == "tool_call") == (each.mode is Mode.TOOL_CALL) for each in dialogues)


def test_prompts_are_those_of_the_server() -> None:
    fmt = choose_prompt_format("rwkv7-demo")
    for dialogue in some():
        mode = dialogue.mode
        rendered = render_chat(
            fmt.without_thinking() if mode is Mode.PLAIN else fmt,
            dialogue.messages,
            think=Think.OFF if mode is Mode.NO_THINK else dialogue.level,
            tools=dialogue.tools,
            force_tool_call=mode is Mode.TOOL_CALL,
        )
        assert prompt_text(dialogue) == rendered
        assert rendered.endswith(f"\n\n{mode.value}")


def test_segments_are_the_prompt_and_the_replies() -> None:
    for dialogue in some():
        segments = training_segments(dialogue)
        assert "".join(each.text for each in segments) == (
            prompt_text(dialogue) + dialogue.completion
        )
        replies = [each for each in dialogue.messages if each.role == "assistant"]
        targets = [each.text for each in segments if each.is_target]
        assert len(targets) == len(replies) + 1
        assert all("\n\n" not in text and "User:" not in text for text in targets)
        assert all(each.text for each in segments)
        assert not segments[0].is_target


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_completion_is_judged_right(kind: str) -> None:
    for dialogue in some(kind):
        assert is_right(dialogue, dialogue.completion)
        assert not dialogue.expected.is_met_by("I do not know.")
        assert not dialogue.expected.is_met_by("")
        assert dialogue.messages[-1].role == ("tool" if kind == "tool_result" else "user")


@pytest.mark.parametrize("kind", ["recall", "tool_call"])
def test_the_answer_stands_in_the_prompt(kind: str) -> None:
    """What must be copied was really said; otherwise the model would learn to invent."""
    for dialogue in some(kind):
        prompt = prompt_text(dialogue)
        call = dialogue.expected.call
        values = dialogue.expected.values
        if call is not None:
            values = tuple(
                str(each) for each in call.arguments.values() if each not in (True, False)
            )
            values += (call.name, *call.arguments)
        for value in values:
            assert value in prompt or value.startswith("You have not told me")


def test_facts_are_the_latest_told() -> None:
    """Read the names and numbers back out of the user's words, in order; the last one wins."""
    told = re.compile(r"(?:my name is|my name's|call me) (\w+)", re.IGNORECASE)
    checked = 0
    for dialogue in some("recall", count=1_500):
        if not re.search(r"Your name is \w+\.$", dialogue.completion):
            continue
        users = [each.content for each in dialogue.messages if each.role == "user"]
        names = [name for text in users for name in told.findall(text)]
        if names and not any(re.search(r"\bI('m| am)\b", text, re.IGNORECASE) for text in users):
            assert dialogue.completion.endswith(f"Your name is {names[-1]}.")
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("mode", [Mode.THINK, Mode.NO_THINK, Mode.PLAIN])
def test_sums_are_right(mode: Mode) -> None:
    for dialogue in some("arithmetic", mode):
        left, sign, right, result = re.findall(
            r"(\d+) ([+-]) (\d+) = (-?\d+)\.$", dialogue.completion
        )[0]
        value = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert int(result) == value == dialogue.expected.number
        assert left in dialogue.messages[-1].content
        assert right in dialogue.messages[-1].content


def test_every_step_of_every_thought_is_right() -> None:
    step = re.compile(r"(\d+) ([+-]) (\d+)(?: ([+-]) (\d+))? = (\d+)")
    for a in range(100):
        for b in range(100):
            for text in (addition_steps(a, b), subtraction_steps(a, b)):
                for left, sign, middle, sign2, right, result in step.findall(text):
                    value = int(left) + (1 if sign == "+" else -1) * int(middle)
                    if right:
                        value += (1 if sign2 == "+" else -1) * int(right)
                    assert value == int(result), text
            assert addition_steps(a, b).endswith(f"Result {a + b}.")
            assert subtraction_steps(a, b).endswith(f"Result {a - b}.")


def test_calls_are_json_that_fits_the_offer() -> None:
    for dialogue in some("tool_call"):
        data = json.loads(dialogue.completion.removesuffix("```"))
        offered = {tool["function"]["name"]: tool["function"] for tool in dialogue.tools}
        assert set(data["arguments"]) == set(offered[data["name"]]["parameters"]["properties"])
