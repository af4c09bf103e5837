"""Stop strings against a search in the whole text, for every way of cutting the text in pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkv_core.stops import StopMatcher

TURNS = ("\n\nUser:", "\n\nSystem:")


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What comes out of `text`, and the stop in it: the first to begin, the shorter of two."""
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop and stop in text]
    if not found:
        return text, None
    start, _, stop = min(found)
    return text[:start], stop


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops)
    out = [matcher.push(piece) for piece in pieces]
    out.append(matcher.flush())
    return out, matcher.matched


def cut(text: str, cuts: list[int]) -> list[str]:
    ends = [*sorted(min(each, len(text)) for each in cuts), len(text)]
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", max_size=6), max_size=5),
    cuts=st.lists(st.integers(0, 30), max_size=30),
)
@example(text="abcd", stops=["abcd", "bc"], cuts=[1, 2, 3])
@example(text="abce", stops=["abcd", "bc"], cuts=[1, 2, 3])
@example(text="abc", stops=["abcd", "bc"], cuts=[1, 2])
@example(text="aab", stops=["ab", "abb"], cuts=[1, 2])
def test_pieces_give_what_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    pieces = cut(text, cuts)
    out, matched = run(pieces, stops)
    assert ("".join(out), matched) == whole(text, stops)

    # Nothing is ever shown that a longer text could turn into a stop, and nothing else is held.
    matcher, read, shown = StopMatcher(stops), "", ""
    for piece in pieces:
        shown += matcher.push(piece)
        read += piece
        if matcher.matched is None:
            starts = range(len(read) + 1)
            open_at = min(
                [start for start in starts for stop in stops if stop.startswith(read[start:])],
                default=len(read),
            )
            assert shown == read[:open_at]


def test_three_line_feeds_before_the_turn() -> None:
    assert run(["Hello.", "\n\n\n", "User", ":", " hi"], [*TURNS]) == (
        ["Hello.", "\n", "", "", "", ""],
        "\n\nUser:",
    )


def test_a_blank_line_alone_is_text() -> None:
    assert run(["One.", "\n\n", "Two.", "\n\nUser", "s like it.", "\n\n"], [*TURNS]) == (
        ["One.", "", "\n\nTwo.", "", "\n\nUsers like it.", "", "\n\n"],
        None,
    )


def test_nothing_comes_after_a_stop() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("a END b") == "a "
    assert (matcher.push("more"), matcher.flush(), matcher.matched) == ("", "", "END")


def test_a_complete_stop_waits_for_one_that_began_before() -> None:
    matcher = StopMatcher(["abcd", "bc"])
    assert (matcher.push("xabc"), matcher.matched) == ("x", None)
    assert (matcher.flush(), matcher.matched) == ("a", "bc")


def test_empty_stops_are_ignored() -> None:
    assert run(["a", "b"], ["", ""]) == (["a", "b", ""], None)


@pytest.mark.parametrize("stop", ["a" * 5000 + "b", "ab" * 2500 + "c"])
def test_a_stop_that_nearly_matches_everywhere_costs_no_more(stop: str) -> None:
    start = time.thread_time()
    matcher = StopMatcher([stop])
    shown = sum(len(matcher.push("ab" if "bab" in stop else "aa")) for _ in range(10_000))
    assert shown + len(matcher.flush()) == 20_000
    assert time.thread_time() - start < 2
