"""Text token by token is the text of all tokens, and never shows half a character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rwkv_core.tokenizer import (
    HuggingFaceTokenizer,
    IncrementalDecoder,
    Tokenizer,
    WorldTokenizer,
)
from tests.tools.hugging_face import trained_tokenizer

WORLD = WorldTokenizer.world()
HUGGING_FACE = HuggingFaceTokenizer(trained_tokenizer().to_str())


def stream(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    decoder = IncrementalDecoder(tokenizer)
    return [decoder.push(token_id) for token_id in ids], decoder.flush()


def split(data: bytes, cuts: list[int]) -> tuple[WorldTokenizer, list[int]]:
    """A vocabulary of the pieces of `data` between `cuts`, and the ids of these pieces."""
    ends = [*sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    pieces = [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    tokenizer = WorldTokenizer([None, *(bytes((value,)) for value in range(256)), *pieces])
    return tokenizer, list(range(257, 257 + len(pieces)))


TEXT = st.text(st.sampled_from("aé你🙂👨‍👩‍👧\ufffd\x00\n"))
CUTS = st.lists(st.integers(0, 60))


@given(text=TEXT, cuts=CUTS)
def test_valid_text_never_shows_a_replacement_character(text: str, cuts: list[int]) -> None:
    tokenizer, ids = split(text.encode(), cuts)
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) == text
    assert rest == ""
    shown = 0
    for position, piece in enumerate(pieces):  # every character as soon as it is whole
        shown += len(piece)
        read = b"".join(map(tokenizer.token_bytes, ids[: position + 1]))
        assert text[:shown] == read.decode("utf-8", "ignore")


# Bytes that make every kind of broken sequence: surrogates, overlong forms, cut ones, stray ones.
BROKEN = st.lists(
    st.sampled_from([b"\xed", b"\xa0", b"\x80", b"\xc0", b"\xe0", b"\xf0\x9f", b"\xf4\x90",
                     b"\xff", b"\xe4\xbd\xa0", b"a", b"\xf0", b"\x8f"])
).map(b"".join)  # fmt: skip


@given(data=st.one_of(BROKEN, st.binary()), cuts=CUTS)
def test_any_bytes_are_replaced_as_python_replaces_them(data: bytes, cuts: list[int]) -> None:
    tokenizer, ids = split(data, cuts)
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) + rest == data.decode("utf-8", "replace") == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 65535)))
def test_any_tokens_of_world(ids: list[int]) -> None:
    pieces, rest = stream(WORLD, ids)
    assert "".join(pieces) + rest == WORLD.decode(ids)


@given(ids=st.lists(st.integers(0, HUGGING_FACE.vocab_size)))
def test_any_tokens_of_a_hugging_face_tokenizer(ids: list[int]) -> None:
    pieces, rest = stream(HUGGING_FACE, ids)
    assert "".join(pieces) + rest == HUGGING_FACE.decode(ids)
