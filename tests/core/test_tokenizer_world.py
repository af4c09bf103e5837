"""RWKV's tokenizer against the authors' own, and vocabularies other than World's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import rwkv  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE, TRIE_TOKENIZER  # type: ignore[import-untyped]

from rwkv_core.errors import TokenizerError
from rwkv_core.tokenizer import WorldTokenizer

WORLD = WorldTokenizer.world()
BYTES = [bytes((value,)) for value in range(256)]

# Characters that World's tokens are made of: runs of blanks, letters, CJK, emoji, control codes.
MIXED = st.text(
    st.one_of(
        st.sampled_from(" \t\r\n=-.0aeTh'\"\\你好的ありが한글🙂👨‍👩‍👧é\x00\x85\u2028"),
        st.characters(exclude_categories=["Cs"]),
    )
)


@pytest.fixture(scope="module")
def authors() -> TRIE_TOKENIZER:
    return TRIE_TOKENIZER(str(Path(rwkv.__file__).parent / "rwkv_vocab_v20230424.txt"))


def authors_trie(tokens: list[bytes]) -> TRIE_TOKENIZER:
    """The authors' tokenizer for another vocabulary, with ids from 1."""
    made = TRIE_TOKENIZER.__new__(TRIE_TOKENIZER)
    made.idx2token = dict(enumerate(tokens, 1))
    made.token2idx = {token: index for index, token in made.idx2token.items()}
    made.root = TRIE()
    for token, index in made.token2idx.items():
        made.root.add(token, val=(token, index))
    return made


@settings(max_examples=400, deadline=None)
@given(text=MIXED)
def test_world_encodes_as_the_authors_do(authors: TRIE_TOKENIZER, text: str) -> None:
    ids = WORLD.encode(text)
    assert ids == authors.encode(text)
    assert WORLD.decode(ids) == text
    assert 0 not in ids


def test_every_token_of_world_has_the_authors_bytes(authors: TRIE_TOKENIZER) -> None:
    assert WORLD.vocab_size == 65536
    for index in range(1, 65530):
        token = WORLD.token_bytes(index)
        assert token == authors.idx2token[index]
        assert WORLD.encode_bytes(token) == [index]
    assert {WORLD.token_bytes(index) for index in (0, 65530, 65535, 65536, -1)} == {b""}


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.binary(min_size=2, max_size=40), max_size=30),
    parts=st.lists(st.integers(0, 10**6), max_size=40),
)
def test_any_vocabulary_encodes_as_the_authors_do(words: list[bytes], parts: list[int]) -> None:
    tokens = [*BYTES, *words]
    data = b"".join(tokens[part % len(tokens)][: 1 + part % 17] for part in parts)
    assert WorldTokenizer([None, *tokens]).encode_bytes(data) == authors_trie(tokens).encodeBytes(
        data
    )


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.text("ab", min_size=1, max_size=9), max_size=40), text=st.text("abc"))
def test_tokens_that_begin_alike_are_told_apart(words: list[str], text: str) -> None:
    tokens = [*BYTES, *(word.encode() for word in words)]
    assert WorldTokenizer([None, *tokens]).encode(text) == authors_trie(tokens).encode(text)


def test_ids_may_be_beyond_16_bits() -> None:
    padding: list[bytes | None] = [None] * 70000
    tokenizer = WorldTokenizer([None, *BYTES, *padding, b"zebra"])
    assert tokenizer.encode("a zebra") == [98, 33, 70257]
    assert tokenizer.vocab_size == 70258


def test_the_end_of_text_cannot_be_written() -> None:
    tokenizer = WorldTokenizer([b"<|endoftext|>", *BYTES])
    assert 0 not in tokenizer.encode("<|endoftext|><s>\x00")
    assert tokenizer.token_bytes(0) == b""
    assert tokenizer.eos_token_ids == {0}
    assert tokenizer.decode([0, 98, 0, 99]) == "ab"


def test_text_that_is_no_unicode_is_replaced() -> None:
    assert WORLD.decode(WORLD.encode("a\ud800b")) == "a\ufffdb"
    assert WORLD.decode([*WORLD.encode_bytes(b"\xf0\x9f"), *WORLD.encode("!")]) == "\ufffd!"


@given(words=st.lists(st.binary(max_size=12), max_size=30))
def test_gguf_form_and_back(words: list[bytes]) -> None:
    tokenizer = WorldTokenizer([None, *BYTES, *words, None])
    again = WorldTokenizer.from_gguf(tokenizer.to_gguf())
    assert again.vocab_size == tokenizer.vocab_size
    for index in range(tokenizer.vocab_size):
        assert again.token_bytes(index) == tokenizer.token_bytes(index)
    assert again.to_gguf() == tokenizer.to_gguf()


def test_gguf_form_is_that_of_a_bytes_literal() -> None:
    words = [b"\n\n", b"it's", b"'\"", b"\\x", "é".encode(), b"\xf0\x9f", b"[PAD7]"]
    stored = WorldTokenizer([None, *BYTES, *words]).to_gguf()
    assert stored[0] == "<s>"
    assert stored[257:] == [
        "\\n\\n", "it's", "\\'\"", "\\\\x", "\\xc3\\xa9", "\\xf0\\x9f", "[PAD7]",
    ]  # fmt: skip
    # llama.cpp's reading: other escaped characters are themselves, and so is plain Unicode.
    tokenizer = WorldTokenizer.from_gguf([*stored, "\\q", "你", "[PAD266]"])
    assert [tokenizer.token_bytes(264 + i) for i in range(3)] == [b"q", "你".encode(), b""]


@pytest.mark.parametrize("token", ["\\x1", "a\\", "\\xzz"])
def test_a_broken_escape_is_refused(token: str) -> None:
    with pytest.raises(TokenizerError, match="token 1 of the vocabulary has a broken escape"):
        WorldTokenizer.from_gguf(["<s>", token])


def test_a_vocabulary_without_a_byte_is_refused() -> None:
    with pytest.raises(TokenizerError, match="no token for the single byte 0x41"):
        WorldTokenizer([None, *(byte for byte in BYTES if byte != b"A")])
    # Bytes that no UTF-8 text has are not missed, until somebody asks for them.
    tokenizer = WorldTokenizer([None, *(byte for byte in BYTES if byte != b"\xff")])
    assert tokenizer.decode(tokenizer.encode("ÿ")) == "ÿ"
    with pytest.raises(TokenizerError, match="0xff"):
        tokenizer.encode_bytes(b"\xff")


@pytest.mark.parametrize(
    "text", ["The quick brown fox, 你好世界 🙂\n\n" * 6000, "    x" * 50000, "= " * 120000]
)
def test_long_texts_take_time_in_proportion(text: str) -> None:
    """A quarter of a megabyte: far below a second of this thread's time on any machine."""
    start = time.thread_time()
    ids = WORLD.encode(text)
    assert time.thread_time() - start < 2
    assert WORLD.decode(ids) == text


def test_threads_share_a_tokenizer() -> None:
    texts = [f"text {n} " + "これは the same 🙂 " * 50 for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(WORLD.encode, texts)) == [WORLD.encode(text) for text in texts]
