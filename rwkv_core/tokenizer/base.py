"""What the engine asks of a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer(Protocol):
    """Text to token ids and back. Implementations are immutable and safe to use from several
    threads.
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids, special and unused ones included."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a text when the model samples them."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; never one that stands for no text, such as the end of text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; b"" for special and unused ids."""


def without_surrogates(text: str) -> str:
    """Lone surrogates, which JSON can carry but UTF-8 cannot, become U+FFFD, as Go's JSON reader
    has it.
    """
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
