"""Which rule a reply gets: its prompt decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rwkv_core.chat.call_constraint import CallConstraint
from rwkv_core.chat.messages import Message, Think
from rwkv_core.chat.prompt_format import choose_prompt_format
from rwkv_core.chat.reply import Preamble
from rwkv_core.chat.reply_stages import ContentConstraint
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from server.chat_templates import ThinkingTags, request_template
from server.replies.constraints import reply_constraint
from server.replies.prompts import Conversation, Prompt

G1 = choose_prompt_format("rwkv7-g1")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TAGS = ThinkingTags("<thought>", "</thought>")
BUILT_IN = Prompt(
    "User: Hi\n\nAssistant: <think",
    G1,
    G1.stops,
    Think.ON,
    ("add",),
    conversation=Conversation((Message("user", "Hi"),), Think.ON, (TOOL,)),
)
TEMPLATED = replace(BUILT_IN, template=request_template("{{ .Prompt }}"), tags=TAGS)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(EMBEDDED)


def test_a_template_has_its_own_words_for_calls(model: Model) -> None:
    assert isinstance(reply_constraint(model, BUILT_IN, None), CallConstraint)
    assert reply_constraint(model, TEMPLATED, None) is None
    for prompt in (BUILT_IN, TEMPLATED):
        assert isinstance(reply_constraint(model, prompt, {"type": "null"}), ContentConstraint)


def test_a_template_has_its_own_tags() -> None:
    assert BUILT_IN.preamble() == Preamble(">", "</think>")
    assert TEMPLATED.preamble() == Preamble("<thought>", "</thought>")
    assert replace(TEMPLATED, text="Hi <tho").preamble() == Preamble("ught>", "</thought>")
    assert replace(TEMPLATED, think=Think.OFF).preamble() == Preamble()
    for silent in (replace(TEMPLATED, tags=None), replace(BUILT_IN, think=None)):
        assert silent.preamble() == Preamble()
