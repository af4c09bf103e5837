"""Guesses how a text goes on by looking up how it went on before: prompt-lookup drafts.

A draft costs rows of a pass and is worth what of it is accepted. How often the text does go on as
it did before is observed token by token, whether drafts are made or not: a text that repeats
nothing has none, and costs only the lookup.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rwkv_core.cache import TokenArray
from rwkv_core.executor import Executor
from rwkv_core.kernel_executor import KernelExecutor

# Tokens of the n-grams that are looked up, the longest first: it is the likelier one to go on as
# before. Of one token, the guess is hardly ever worth its row.
_SIZES = (5, 2)
# Tables have 2 to this power slots of 4 bytes, by the length of the prompt: at least four for each
# n-gram in it, until a table takes half a megabyte.
_MIN_TABLE_BITS = 13
_MAX_TABLE_BITS = 17

_MASK = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: it spreads ids that follow one another

# How much one more observation moves the estimate of how often a guess is right.
_LEARNING_RATE = 0.2
# What a pass with drafts costs beside its rows, in rows: mostly the copy of the state.
_EXTRA_ROWS = 2.0
_DEFAULT_MAX_TOKENS = 8
_MIN_WEIGHT_BYTES = 32 << 20
# More rows than that are no cheaper than passes, on a CPU.
_MAX_TOKENS = 32


@dataclass(frozen=True)
class Match:
    """The end of a text has been in it before."""

    size: int  # how many tokens are known to be alike
    position: int  # of the token that followed there


def default_max_tokens(executor: Executor) -> int:
    """For a request that does not say: as many as pay, or 0 where none do.

    Not in PyTorch: a text may differ there by its drafts, which depend on times. Nor for a model so
    small that its passes take hardly longer than the lookup and what else a draft needs.
    """
    is_worth_it = executor.num_weight_bytes >= _MIN_WEIGHT_BYTES
    return _DEFAULT_MAX_TOKENS if is_worth_it and isinstance(executor, KernelExecutor) else 0


class NgramIndex:
    """Finds where the last tokens of a text came last before, in time and memory that do not grow.

    An n-gram may be forgotten when a later one takes its place in a table. What is found is always
    the latest place.
    """

    def __init__(self, token_ids: TokenArray) -> None:
        """`token_ids` [T] int32 are what there is of the text."""
        self._tokens = array("i")
        self._tokens.frombytes(token_ids.tobytes())
        num_bits = min(max(len(token_ids).bit_length() + 2, _MIN_TABLE_BITS), _MAX_TABLE_BITS)
        self._shift = 64 - num_bits
        # For each size: by slot, the position behind the latest n-gram that something follows (0:
        # none); and the slot of the last n-gram, which nothing follows yet.
        self._tables = [_table(token_ids, size, num_bits) for size in _SIZES]
        self._slots = [0] * len(_SIZES)
        self._find_slots()

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, position: int) -> int:
        return self._tokens[position]

    def append(self, token_id: int) -> None:
        """The text goes on."""
        num_tokens = len(self._tokens)
        for size, table, slot in zip(_SIZES, self._tables, self._slots, strict=True):
            if num_tokens >= size:
                table[slot] = num_tokens
        self._tokens.append(token_id)
        self._find_slots()

    def find(self) -> Match | None:
        """The longest n-gram at the end of the text that has been followed by something before."""
        tokens = self._tokens
        for size, table, slot in zip(_SIZES, self._tables, self._slots, strict=True):
            position = table[slot]
            if position and tokens[position - size : position] == tokens[-size:]:
                return Match(size, position)
        return None

    def continuation(self, match: Match, num_tokens: int) -> list[int]:
        """What followed the match. A draft longer than that goes on with itself."""
        copied: list[int] = []
        num_left = len(self._tokens) - match.position
        for offset in range(num_tokens):
            is_known = offset < num_left
            copied.append(
                self._tokens[match.position + offset] if is_known else copied[offset - num_left]
            )
        return copied

    def _find_slots(self) -> None:
        """`_slots_in` for the last n-grams alone."""
        for number, size in enumerate(_SIZES):
            key = 0
            for token in self._tokens[-size:]:
                key = ((key + token) * _FACTOR) & _MASK
            self._slots[number] = key >> self._shift


class Drafter:
    """Drafts for one text. It never changes what is written, only how many passes that takes."""

    def __init__(self, token_ids: TokenArray, max_tokens: int) -> None:
        """`token_ids` are the prompt; a draft has at most `max_tokens`."""
        self._index = NgramIndex(token_ids)
        self._max_tokens = min(max_tokens, _MAX_TOKENS)
        # For each size, how often the guess was right lately. At first none is trusted; a longer
        # match as much as a shorter one.
        self._rates = {_SIZES[-1]: 0.0}
        self._match = self._index.find()

    def push(self, token_id: int) -> None:
        """The text has got a token, drafted or not."""
        match = self._match
        if match is not None:
            is_right = self._index[match.position] == token_id
            rate = self._rate(match.size)
            self._rates[match.size] = rate + _LEARNING_RATE * (is_right - rate)
        self._index.append(token_id)
        self._match = self._index.find()

    def draft(self, num_pending: int, row_cost: float, max_tokens: int | None) -> list[int]:
        """What to try next: nothing when it is not likely to pay. None is no limit of its own.

        `row_cost` is what one more row takes, as a share of the time in which a token comes without
        drafts. The `num_pending` tokens before the draft are read once more because of it.
        """
        if self._match is None:
            return []
        most = self._max_tokens if max_tokens is None else min(max_tokens, self._max_tokens)
        rate = self._rate(self._match.size)
        best_gain, best_count = 0.0, 0
        gain = -row_cost * (num_pending + _EXTRA_ROWS)
        probability = 1.0  # that all of the draft is right
        for count in range(1, most + 1):
            probability *= rate
            # A token that was accepted is read once more when one behind it was not.
            gain += probability * (1 - row_cost) - row_cost
            if gain > best_gain:
                best_gain, best_count = gain, count
        return self._index.continuation(self._match, best_count)

    def _rate(self, size: int) -> float:
        return self._rates.get(size, self._rates[_SIZES[-1]])


def _slots_in(token_ids: TokenArray, size: int, num_bits: int) -> npt.NDArray[np.uint64]:
    """The places in a table of all n-grams of a text."""
    count = max(len(token_ids) - size + 1, 0)
    keys = np.zeros(count, np.uint64)
    for offset in range(size):
        keys += token_ids[offset : offset + count].astype(np.uint64)
        keys *= np.uint64(_FACTOR)  # modulo 2**64
    keys >>= np.uint64(64 - num_bits)
    return keys


def _table(token_ids: TokenArray, size: int, num_bits: int) -> array[int]:
    table = np.zeros(1 << num_bits, np.int32)
    slots = _slots_in(token_ids[:-1], size, num_bits)
    # Where a slot comes more than once, NumPy leaves the last value.
    table[slots] = np.arange(size, size + len(slots), dtype=np.int32)
    return array("i", table.tobytes())
