"""Replies to prompts out of a model's own template: the prompt's end decides how they begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_core.chat.reply import ReplyKind, TaggedReplyParser

TAGS = ("<think>", "</think>")


def parted(prompt: str, pieces: list[str], tags: tuple[str, str] = TAGS) -> tuple[str, str]:
    """The thought and the content."""
    parser = TaggedReplyParser(prompt, *tags)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.flush()
    texts = dict.fromkeys(ReplyKind, "")
    for part in parts:
        texts[part.kind] += part.text
    return texts[ReplyKind.THINKING], texts[ReplyKind.CONTENT]


@pytest.mark.parametrize(
    ("prompt", "reply", "expected"),
    [
        ("Assistant:", " Hi.", ("", "Hi.")),
        ("Assistant:", " <think>a</think>\n\nHi.", ("a", "Hi.")),
        ("Assistant: <think", ">a\n</think>Hi.", ("a", "Hi.")),
        ("Assistant: <", "think>a</think>Hi.", ("a", "Hi.")),
        ("Assistant: <think>\n", "a</think>\nHi.", ("a", "Hi.")),
        ("Assistant: <think>\n</think>", "Hi.", ("", "Hi.")),
        ("Assistant: <think></think", ">\nHi.", ("", "Hi.")),
        ("1 <", " 2 is true", ("", " 2 is true")),
        ("1 <", "", ("", "")),
        ("Assistant: <think>", "", ("", "")),
        ("Assistant: <think>", "never closed", ("never closed", "")),
    ],
)
def test_the_end_of_the_prompt(prompt: str, reply: str, expected: tuple[str, str]) -> None:
    assert parted(prompt, [reply]) == expected
    assert parted(prompt, list(reply)) == expected, "letter by letter"


def test_a_word_is_no_half_tag() -> None:
    assert parted("the assistant", ["hi"], ("think>", "</think>")) == ("", "hi")


@given(
    st.sampled_from(["A:", "A: <", "A: <think", "A: <think>", "A: <think></think>", "A: </th"]),
    st.lists(st.sampled_from(["<", "think", ">", "</", "</think>", "a", " ", "\n", "<think>"])),
    st.randoms(use_true_random=False),
)
def test_it_does_not_matter_how_the_reply_is_cut(
    prompt: str, words: list[str], random: object
) -> None:
    text = "".join(words)
    assert parted(prompt, list(text)) == parted(prompt, words)
