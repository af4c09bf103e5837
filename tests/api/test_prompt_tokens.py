"""Tokenizing with a memory gives what tokenizing gives."""

from __future__ import annotations

import random

import pytest

from rwkv_core.tokenizer import HuggingFaceTokenizer, Tokenizer, WorldTokenizer
from server.replies.prompt_tokens import TextEncoder, common_beginning
from tests.tools.hugging_face import trained_tokenizer

WORDS = (
    "User: ",
    "Hello",
    "\n\n",
    " 12",
    "3",
    "你好",
    "🙂",
    "Assistant:",
    " <think",
    "\ud800",
    ".",
)


@pytest.mark.parametrize("seed", range(6))
def test_texts_that_begin_alike(seed: int) -> None:
    choices = random.Random(seed)
    tokenizer = WorldTokenizer.world()
    encoder = TextEncoder(tokenizer)
    texts = [""]
    for _ in range(150):
        text = choices.choice(texts)
        text = text[: choices.choice((len(text), choices.randrange(len(text) + 1)))]
        text += "".join(choices.choices(WORDS, k=choices.randrange(200)))
        texts.append(text)
        encoded = encoder.encode(text)
        assert encoded.tokens.tolist() == tokenizer.encode(text)
        assert b"".join(map(tokenizer.token_bytes, encoded.tokens.tolist())) == encoded.data
        end = choices.randrange(len(encoded.data) + 1)
        count = encoded.num_tokens_in(end)
        assert len(tokenizer.decode(encoded.tokens[:count].tolist()).encode()) <= end + 8
        assert list(encoded.ends[count : count + 1] > end) in ([True], [])


def test_a_text_cut_at_every_byte_is_read_on_with_the_tokens_of_a_whole_one() -> None:
    """Whatever was remembered, and wherever it parts from the new text: inside a token, too."""
    tokenizer = WorldTokenizer.world()
    text = "User: Grüße, 你好🙂!\n\n  x\t= 12345\n\nAssistant: <think>\n</think> Internationale 😀"
    expected = tokenizer.encode(text)
    data = text.encode()
    for end in range(len(data) + 1):
        encoder = TextEncoder(tokenizer)
        # As much of its last character as there is room for, then nothing, or something else.
        beginning = data[:end].decode(errors="ignore")
        for other in (beginning, f"{beginning}\n\nUser:", f"{beginning}z"):
            encoder.encode(other)
            assert encoder.encode(text).tokens.tolist() == expected, end


def test_only_the_new_part_is_tokenized() -> None:
    class Watched(WorldTokenizer):
        num_bytes = 0

        def encode_bytes(self, data: bytes) -> list[int]:
            self.num_bytes += len(data)
            return super().encode_bytes(data)

    tokenizer = Watched([None, *(bytes([value]) for value in range(256)), b"ab", b"abc"])
    encoder = TextEncoder(tokenizer)
    text = "abcab" * 1000
    encoder.encode(text)
    tokenizer.num_bytes = 0
    encoder.encode(text + "new")
    encoder.encode(text[:-1] + "other")
    encoder.encode(text)
    assert tokenizer.num_bytes < 50


def test_memory_is_bounded() -> None:
    encoder = TextEncoder(WorldTokenizer([None, *(bytes([value]) for value in range(256))]))
    for number in range(100):
        encoder.encode(f"{number} " * 40_000)
    assert encoder._num_bytes() <= 32 << 20


@pytest.mark.parametrize("kind", ["world", "hugging face"])
def test_what_all_continuations_begin_with(kind: str) -> None:
    tokenizer: Tokenizer = WorldTokenizer.world()
    if kind != "world":
        tokenizer = HuggingFaceTokenizer(trained_tokenizer().to_str())
    encoder = TextEncoder(tokenizer)
    before = "Assistant: It is 9.\n\nUser:"
    tokens = common_beginning([encoder.encode(f"{before} {word}") for word in ("a", "0", "(")])
    known = tokenizer.decode(tokens.tolist())
    assert before.startswith(known)
    assert len(known) > len(before) - 10
    for word in ("apple", "Hello", "42", "“", "中文", "-"):
        whole = encoder.encode(f"{before} {word}")
        assert whole.tokens[: len(tokens)].tolist() == tokens.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_tokens_in_characters(seed: int) -> None:
    choices = random.Random(seed)
    tokenizer = WorldTokenizer.world()
    words = [word for word in WORDS if seed or word.isascii()]
    text = "".join(choices.choices(words, k=200))
    encoded = TextEncoder(tokenizer).encode(text)
    num_chars = [*sorted(choices.randrange(len(text) + 1) for _ in range(50)), 0, len(text)]
    wanted = [
        encoded.num_tokens_in(len(text[:end].encode("utf-8", "replace").replace(b"?", b"???")))
        for end in num_chars
    ]
    assert encoded.num_tokens_in_chars(num_chars) == wanted
    assert encoded.num_tokens_in_chars([]) == []


def test_a_chat_has_one_text_in_memory_however_long() -> None:
    tokenizer = WorldTokenizer([None, *(bytes([value]) for value in range(256))])
    encoder = TextEncoder(tokenizer)
    text, other = "System: Be brief.\n\n", "Another chat altogether. " * 20
    encoder.encode(other)
    for turn in range(50):
        text += f"User: {turn}, please.\n\nAssistant:"
        encoder.encode(f"{text} <think></think")
        text += f" It is {turn}.\n\n"
        for word in ("a", "0", "("):
            encoder.encode(f"{text}User: {word}\n\nAssistant: <think></think")
    assert encoder._num_bytes() < 15 * len(text) + 15 * len(other)
