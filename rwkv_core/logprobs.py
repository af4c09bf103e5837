"""How likely the model found the tokens of a reply, and what else it might have written."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from rwkv_core.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log probability, as the model gave it: before penalties, cuts,
    temperature and masks.

    `token` is its text, where bytes that are no whole characters are U+FFFD; `bytes` are exact.
    `top` are the likeliest tokens in its place, which have no `top` of their own.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top: tuple[TokenLogprob, ...] = ()


def token_logprob(
    tokenizer: Tokenizer, logits: Tensor, token_id: int, num_top: int
) -> TokenLogprob:
    """Of a token that was drawn from logits [V], with the `num_top` likeliest in its place."""
    logprobs = logits.detach().double().log_softmax(0)
    top: tuple[TokenLogprob, ...] = ()
    if num_top:
        values, ids = logprobs.topk(min(num_top, len(logprobs)))
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        top = tuple(_named(tokenizer, each, value) for each, value in pairs)
    drawn = _named(tokenizer, token_id, float(logprobs[token_id]))
    return TokenLogprob(drawn.token, drawn.logprob, drawn.bytes, top)


class LogprobQueue:
    """Holds back what is said of tokens until their text is known to be no stop."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()

    def add(self, num_chars: int, logprob: TokenLogprob) -> None:
        """Of the next token, whose text begins behind so many characters of the reply."""
        self._waiting.append((num_chars, logprob))

    def take(self, num_chars: int) -> tuple[TokenLogprob, ...]:
        """Those of tokens that begin in the first `num_chars` characters and were not taken yet."""
        taken: list[TokenLogprob] = []
        while self._waiting and self._waiting[0][0] < num_chars:
            taken.append(self._waiting.popleft()[1])
        return tuple(taken)

    def take_all(self) -> tuple[TokenLogprob, ...]:
        """The rest, when the reply is over and was not cut by a stop."""
        taken = tuple(logprob for _, logprob in self._waiting)
        self._waiting.clear()
        return taken


def _named(tokenizer: Tokenizer, token_id: int, logprob: float) -> TokenLogprob:
    data = tokenizer.token_bytes(token_id)
    return TokenLogprob(data.decode("utf-8", "replace"), logprob, tuple(data))
