"""Byte-level BPE out of a Hugging Face `tokenizer.json` (the Pile models' GPT-NeoX vocabulary)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tokenizers

from rwkv_core.errors import TokenizerError
from rwkv_core.tokenizer.base import without_surrogates

# Special tokens that end a text, by the names that byte-level vocabularies give them.
_END_OF_TEXT = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>", "<eos>")


class HuggingFaceTokenizer:
    """Byte-level BPE from the content of a tokenizer.json; TokenizerError for any other kind.

    Special tokens stand for no text: the words "<|endoftext|>" in a prompt are text like any other.
    `json_text` is kept, to be stored with a converted model.
    """

    def __init__(self, json_text: str) -> None:
        self.json_text = json_text
        special, added = _added_tokens(json_text)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json_text)
        except Exception as error:  # the Rust side raises plain Exception
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._vocab_size = max(vocabulary.values(), default=-1) + 1
        self._tokens = {
            token_id: added[token_id].encode() if token_id in added else _to_bytes(name)
            for name, token_id in vocabulary.items()
            if token_id not in special
        }
        ends = {token_id for token_id, name in special.items() if name in _END_OF_TEXT}
        # RWKV's habit is to end texts with id 0, whatever its name.
        self._eos_token_ids = frozenset(ends or {0} & special.keys())

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._eos_token_ids

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(without_surrogates(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokens.get(token_id, b"")


def _added_tokens(json_text: str) -> tuple[dict[int, str], dict[int, str]]:
    """The added tokens of a tokenizer.json, id -> text: special ones, and others (runs of spaces
    …).
    """
    try:
        content: Any = json.loads(json_text)
        if content["model"].get("type", "BPE") != "BPE" or not _is_byte_level(content):
            raise TokenizerError(
                "tokenizer.json is not byte-level BPE, the only kind that RWKV models use"
            )
        special: dict[int, str] = {}
        added: dict[int, str] = {}
        for token in content.get("added_tokens") or ():
            (special if token["special"] else added)[int(token["id"])] = str(token["content"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"tokenizer.json is damaged: {error!r}") from error
    return special, added


def _is_byte_level(content: dict[str, Any]) -> bool:
    decoder = content.get("decoder") or {}
    return any(
        step.get("type") == "ByteLevel" for step in (decoder, *(decoder.get("decoders") or ()))
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: a printable Latin-1 character is itself, the others follow
    U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF_LETTER = _byte_alphabet()


def _to_bytes(name: str) -> bytes:
    """Bytes of a token's name; one with a letter outside the alphabet stands for itself, as in
    `tokenizers`.
    """
    try:
        return bytes(_BYTE_OF_LETTER[letter] for letter in name)
    except KeyError:
        return name.encode()
