"""Text from tokens, one token at a time."""

from __future__ import annotations

import codecs

from rwkv_core.tokenizer.base import Tokenizer


class IncrementalDecoder:
    """Gives out only whole characters: a token may end inside one, and the next tokens complete it.

    All the pieces joined are `tokenizer.decode` of all the tokens: bytes that are not UTF-8 become
    U+FFFD, an incomplete character at the very end only with `flush`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_whole(self) -> bool:
        """Whether what was given out is all there was: no character is incomplete."""
        return not self._decoder.getstate()[0]

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)
