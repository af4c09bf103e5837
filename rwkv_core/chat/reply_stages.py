"""A reply whose content follows a grammar: the tag and the thought before it are almost free.

Nothing may come between the stages that the next one cannot take: a token may end in the middle of
what ends a stage, or go on behind it, and what is left of it belongs to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rwkv_core.chat.reply import Preamble
from rwkv_core.grammar import Grammar, GrammarMatch, GrammarVocabulary


class _Stage(Protocol):
    """A part of the reply. The next one begins with what `accept` returns."""

    def takes(self, data: bytes) -> bool:
        """Whether the part may go on so, and those behind it."""

    def begin(self, data: bytes) -> bytes | None:
        """See `accept`; for the rest of the token that ended the part before."""

    def mask(self) -> Tensor: ...
    def accept(self, token_id: int) -> bytes | None:
        """What is left for the next part, if this one has ended."""

    @property
    def is_over(self) -> bool: ...


class ContentConstraint:
    """See `TokenConstraint`: the content is one text of a grammar, and then the reply is over.

    Neither the end of text nor a stop may come before that: where a thought would end the reply,
    the model has to go on with another token.
    """

    def __init__(self, grammar: Grammar, preamble: Preamble, stops: Sequence[str] = ()) -> None:
        """`stops` are those of the prompt's format."""
        vocabulary = grammar.vocabulary
        content = _Content(grammar.begin())
        self._stages: list[_Stage] = [content]
        if preamble.closing is not None:
            self._stages.insert(0, _Thought(vocabulary, preamble.closing, stops, content))
        if preamble.literal:
            self._stages.insert(0, _Literal(vocabulary, preamble.literal, self._stages[0]))
        self._stages[0].begin(b"")

    def mask(self) -> Tensor | None:
        return self._stages[0].mask()

    def accept(self, token_id: int) -> None:
        rest = self._stages[0].accept(token_id)
        while rest is not None:
            del self._stages[0]
            rest = self._stages[0].begin(rest)

    @property
    def is_complete(self) -> bool:
        return len(self._stages) == 1 and self._stages[0].is_over


class _Literal:
    """A text that is given, which tokens may cut anywhere."""

    is_over = False

    def __init__(self, vocabulary: GrammarVocabulary, text: str, following: _Stage) -> None:
        self._vocabulary = vocabulary
        self._rest = text.encode()
        self._following = following
        vocabulary.by_first_byte  # noqa: B018 - now, rather than while others wait for a token

    def takes(self, data: bytes) -> bool:
        if len(data) < len(self._rest):
            return self._rest.startswith(data)
        return data.startswith(self._rest) and self._following.takes(data[len(self._rest) :])

    def begin(self, data: bytes) -> bytes | None:
        return self._push(data)

    def mask(self) -> Tensor:
        mask = torch.zeros(self._vocabulary.vocab_size, dtype=torch.bool)
        for token_id, token in self._vocabulary.by_first_byte.get(self._rest[0], ()):
            mask[token_id] = self.takes(token)
        return mask

    def accept(self, token_id: int) -> bytes | None:
        return self._push(self._vocabulary.token_bytes[token_id])

    def _push(self, data: bytes) -> bytes | None:
        size = len(self._rest)
        if len(data) < size:
            self._rest = self._rest[len(data) :]
            return None
        return data[size:]


class _Thought:
    """Any text up to the closing tag, without the words that would end the reply."""

    is_over = False

    def __init__(
        self,
        vocabulary: GrammarVocabulary,
        close: str,
        stops: Sequence[str],
        following: _Content,
    ) -> None:
        self._vocabulary = vocabulary
        self._close = close.encode()
        self._stops = [stop.encode() for stop in stops]
        self._following = following
        self._ends = [self._close, *self._stops]
        for end in self._ends:  # now, rather than while others wait for a token
            vocabulary.containing(end)
            vocabulary.containing(end[-1:])
        self._tail = b""  # as much of the text as an end may have begun in
        self._free = vocabulary.texts.clone()
        self._free[vocabulary.eos_token_ids] = False

    def takes(self, data: bytes) -> bool:
        text = self._tail + data
        before, closing, rest = text.partition(self._close)
        if any(stop in before for stop in self._stops):
            return False
        return not closing or self._following.takes(rest)

    def begin(self, data: bytes) -> bytes | None:
        return self._push(data)

    def mask(self) -> Tensor:
        mask = self._free
        for token_id in self._refused():
            if mask is self._free:
                mask = mask.clone()
            mask[token_id] = False
        return mask

    def accept(self, token_id: int) -> bytes | None:
        return self._push(self._vocabulary.token_bytes[token_id])

    def _refused(self) -> list[int]:
        """Tokens that complete a stop, or the closing tag together with what may not follow."""
        refused: list[int] = []
        for end in self._ends:
            begun = [n for n in range(1, len(end)) if self._tail.endswith(end[:n])]
            wanted = [end[n:] for n in begun]
            for token_id, token in self._vocabulary.containing(end[-1:] if begun else end):
                is_end = end in token or any(token.startswith(each) for each in wanted)
                if is_end and not self.takes(token):
                    refused.append(token_id)
        return refused

    def _push(self, data: bytes) -> bytes | None:
        text = self._tail + data
        _, closing, rest = text.partition(self._close)
        if closing:
            return rest
        self._tail = text[-(max(map(len, self._ends)) - 1) :]
        return None


class _Content:
    """A text of the grammar."""

    def __init__(self, match: GrammarMatch) -> None:
        self._match = match

    @property
    def is_over(self) -> bool:
        return self._match.is_over

    def takes(self, data: bytes) -> bool:
        return self._match.accepts_bytes(data)

    def begin(self, data: bytes) -> bytes | None:
        self._match.accept_bytes(data)
        self._match.prepare()
        return None

    def mask(self) -> Tensor:
        return self._match.mask()

    def accept(self, token_id: int) -> bytes | None:
        self._match.accept(token_id)
        self._match.prepare()
        return None
