"""Hugging Face's byte-level BPE, against the `tokenizers` package itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_core.errors import TokenizerError
from rwkv_core.tokenizer import HuggingFaceTokenizer
from tests.tools.hugging_face import trained_tokenizer

ORACLE = trained_tokenizer()
TOKENIZER = HuggingFaceTokenizer(ORACLE.to_str())
TEXT = st.text(
    st.one_of(
        st.sampled_from("the quick   foxé你好🙂\n\t"), st.characters(exclude_categories=["Cs"])
    )
)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == ORACLE.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids) == text
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()


@given(ids=st.lists(st.integers(0, ORACLE.get_vocab_size() + 3), max_size=40))
def test_any_ids_decode_as_the_package_decodes_them(ids: list[int]) -> None:
    assert TOKENIZER.decode(ids) == ORACLE.decode(ids, skip_special_tokens=True)


def test_special_tokens_have_no_text_and_text_never_makes_them() -> None:
    assert TOKENIZER.eos_token_ids == {0}
    assert TOKENIZER.token_bytes(0) == TOKENIZER.token_bytes(1) == b""
    assert ORACLE.encode("a<|endoftext|>").ids[-1] == 0  # what must not happen to a client's text
    ids = TOKENIZER.encode("a<|endoftext|>")
    assert not {0, 1} & set(ids)
    assert TOKENIZER.decode(ids) == "a<|endoftext|>"


def test_another_name_for_the_end_of_text() -> None:
    content = ORACLE.to_str().replace("<|endoftext|>", "<|done|>")
    assert HuggingFaceTokenizer(content).eos_token_ids == {0}
    content = content.replace("<|padding|>", "</s>")
    assert HuggingFaceTokenizer(content).eos_token_ids == {1}


def test_added_tokens_are_their_text() -> None:
    ids = TOKENIZER.encode("a    b")
    assert TOKENIZER.vocab_size - 2 in ids
    assert TOKENIZER.token_bytes(TOKENIZER.vocab_size - 2) == b"    "
    assert TOKENIZER.token_bytes(TOKENIZER.vocab_size) == b""
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a\ufffdb"


def test_a_length_limit_in_the_file_cuts_nothing() -> None:
    limited = trained_tokenizer()
    limited.enable_truncation(4)
    limited.enable_padding(length=64)
    text = "the quick brown fox " * 9
    assert HuggingFaceTokenizer(limited.to_str()).encode(text) == TOKENIZER.encode(text)


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(ORACLE.to_str()) | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[" * 100_000,
        '{"model": 5}',
        changed(decoder=None),
        changed(decoder={"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}),
        changed(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        changed(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}),
        changed(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}),
        changed(added_tokens=[{"id": 3}]),
        changed(added_tokens=7),
        changed(pre_tokenizer={"type": "Unheard-of"}),
    ],
)
def test_what_is_no_byte_level_bpe_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json") as refused:
        HuggingFaceTokenizer(text)
    assert "\n" not in str(refused.value)


def test_an_id_from_nowhere_takes_no_memory() -> None:
    content = json.loads(ORACLE.to_str())
    content["model"]["vocab"]["far"] = 4_000_000_000
    far = HuggingFaceTokenizer(json.dumps(content))
    assert far.vocab_size == 4_000_000_001
    assert far.token_bytes(4_000_000_000) == b"far"
