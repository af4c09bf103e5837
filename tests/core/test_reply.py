"""The reply parser gives the same parts however the text was cut, and never shows a tag."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_core.chat.messages import Think
from rwkv_core.chat.prompt_format import PromptFormat, choose_prompt_format
from rwkv_core.chat.reply import ReplyKind, ReplyParser

G1 = choose_prompt_format("rwkv7-g1")
WORLD = choose_prompt_format("world")

# Pieces that make trouble: tags, halves of tags and white space, in any order.
PIECES = st.lists(
    st.sampled_from(
        [
            ">",
            "<",
            "</",
            "<think>",
            "</think>",
            "</thi",
            "nk>",
            "a",
            "b c",
            " ",
            "\n",
            "\n\n",
            "é",
            "🙂",
        ]
    ),
    max_size=12,
).map("".join)


def parse(fmt: PromptFormat, think: Think | None, pieces: list[str]) -> tuple[str, str]:
    """(thought, content) of a reply given in pieces."""
    parser = ReplyParser(fmt, think)
    texts = {ReplyKind.THINKING: "", ReplyKind.CONTENT: ""}
    for parts in [*map(parser.push, pieces), parser.flush()]:
        for part in parts:
            assert part.text
            texts[part.kind] += part.text
    return texts[ReplyKind.THINKING], texts[ReplyKind.CONTENT]


@pytest.mark.parametrize(
    ("fmt", "think", "reply", "thought", "content"),
    [
        (G1, None, ">\nFirst.\n\nThen.\n</think>\n\nYes.", "First.\n\nThen.", "Yes."),
        (G1, Think.ON, ">a</think>b", "a", "b"),
        (G1, Think.LOW, "></think>\nb", "", "b"),
        (G1, Think.ON, ">never closed </thi", "never closed", ""),
        (G1, Think.ON, ">a </thinner> b</think> c", "a </thinner> b", "c"),
        (G1, Think.ON, ">a</think></think>\nb", "a", "b"),
        (G1, Think.ON, ">a</think>\n<think>b</think>c", "ab", "c"),
        (G1, Think.ON, " three, four", "", " three, four"),
        (G1, Think.OFF, ">\nHello.\n", "", "Hello.\n"),
        (G1, Think.OFF, ">\n<b>bold</b>", "", "<b>bold</b>"),
        (G1, Think.OFF, ">\n<think>a</think>b", "a", "b"),
        (G1, Think.OFF, ">", "", ""),
        (G1, Think.OFF, ">\n<", "", "<"),
        (G1, Think.ON, "", "", ""),
        (WORLD, None, " Hello <think> there", "", "Hello <think> there"),
        (G1.without_thinking(), None, " Hello.", "", "Hello."),
    ],
)
def test_parts_of_a_reply(
    fmt: PromptFormat, think: Think | None, reply: str, thought: str, content: str
) -> None:
    assert parse(fmt, think, [reply]) == (thought, content)
    assert parse(fmt, think, list(reply)) == (thought, content)


@given(PIECES, st.sampled_from([None, Think.OFF]), st.lists(st.integers(0, 60), max_size=5))
def test_cutting_changes_nothing(reply: str, think: Think | None, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(reply)) for cut in cuts), len(reply)]
    pieces = [reply[a:b] for a, b in pairwise(places)]
    for fmt in (G1, WORLD):
        whole = parse(fmt, think, [reply])
        assert parse(fmt, think, pieces) == whole
        assert parse(fmt, think, list(reply)) == whole


@given(PIECES)
def test_no_tag_leaks_out_of_a_thought(reply: str) -> None:
    thought, content = parse(G1, Think.ON, list(f">{reply}"))
    assert "</think>" not in thought
    assert thought == thought.lstrip()
    assert content == content.lstrip()
    assert not content.startswith(("<think>", "</think>"))


@given(PIECES)
def test_an_unclosed_thought_is_whole_but_for_half_a_tag(reply: str) -> None:
    if "</think>" in reply:
        return
    thought, content = parse(G1, Think.ON, list(f">{reply}"))
    assert content == ""
    assert reply.lstrip().startswith(thought)
    rest = reply.lstrip()[len(thought) :].strip()
    assert "</think>".startswith(rest)
    assert rest or not reply.endswith(("</", "</thi"))


@given(PIECES)
def test_a_thought_streams_before_it_is_closed(reply: str) -> None:
    """All but white space and what may be half a tag is given out at once."""
    parser = ReplyParser(G1, Think.ON)
    given_out = "".join(part.text for part in parser.push(f">{reply}x"))
    assert given_out.endswith("x")
