"""Grammars over a model's tokens: JSON schemas compiled by llguidance, and a text's way through.

llguidance reads bytes, so that a text may be cut into tokens in any way. It lets the GIL go while
it computes masks, which a few threads of this module do ahead of time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import llguidance
import numpy as np
import torch
from torch import Tensor

from rwkv_core.errors import GenerationError, GrammarError
from rwkv_core.large_stack import run_with_large_stack
from rwkv_core.schema_endings import check_endings
from rwkv_core.schema_limits import MAX_SCHEMA_CHARS, check_schema
from rwkv_core.schema_trial import CompilerLimits, SchemaTrial, one_line
from rwkv_core.tokenizer import Tokenizer

# White space between JSON's tokens: one blank, or one line break with an indent. Small models fall
# into endless white space where they may.
JSON_SPACE = r" |\n {0,24}"
# Before the JSON: a World model begins its replies with a blank, and G1 ends a thought with lines.
_LEADING_SPACE = r"[ \n]{1,2}"

# A mask is waited for by every stream of a pass. These limits keep it near 10 ms.
_LIMITS = CompilerLimits(max_items_in_row=10_000, step_max_items=50_000, max_grammar_size=100_000)
_PARSER_LIMITS = llguidance.LLParserLimits(
    max_items_in_row=_LIMITS.max_items_in_row,
    step_max_items=_LIMITS.step_max_items,
    max_grammar_size=_LIMITS.max_grammar_size,
    verbose_errors=False,
)
_SCHEMA_OPTIONS = {
    "whitespace_pattern": JSON_SPACE,
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,
    "coerce_one_of": False,
}

SCHEMA_TRIAL = SchemaTrial(_LIMITS)

_masks = ThreadPoolExecutor(max_workers=2, thread_name_prefix="anser-masks")


class GrammarVocabulary:
    """A model's tokens as grammars see them. Immutable, and safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size` is the model's: ids past the tokenizer's are no tokens."""
        self.vocab_size = vocab_size
        self.token_bytes = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.eos_token_ids = sorted(each for each in tokenizer.eos_token_ids if each < vocab_size)
        # Tokens that stand for one byte write every text; of C0 and its like there may be none.
        self._byte_ids = {
            token[0]: token_id
            for token_id, token in enumerate(self.token_bytes)
            if len(token) == 1 and token_id not in tokenizer.eos_token_ids
        }
        # llguidance wants an end of text. Where there is none it is one that no model can draw.
        ends = self.eos_token_ids or [vocab_size]
        tokens = [*self.token_bytes, *([b""] if not self.eos_token_ids else [])]
        wrapped = llguidance.TokenizerWrapper(_Tokens(tokenizer, tokens, ends[0]))
        self.tokens = llguidance.LLTokenizer(
            wrapped,
            n_vocab=len(tokens),
            eos_token=ends,
            slices=llguidance.LLTokenizer.json_slices(),
        )
        self._containing: dict[bytes, list[tuple[int, bytes]]] = {}

    def byte_tokens(self, data: bytes) -> list[int] | None:
        """Tokens of one byte each that are `data`; None where the vocabulary lacks one."""
        ids = [self._byte_ids.get(byte) for byte in data]
        return None if None in ids else [each for each in ids if each is not None]

    def containing(self, part: bytes) -> Sequence[tuple[int, bytes]]:
        """Every token whose bytes have `part` in them, with its bytes."""
        found = self._containing.get(part)
        if found is None:
            found = [
                (index, token) for index, token in enumerate(self.token_bytes) if part in token
            ]
            self._containing[part] = found
        return found

    @cached_property
    def by_first_byte(self) -> Mapping[int, Sequence[tuple[int, bytes]]]:
        """Every token that stands for some text, but no end of text, with its bytes."""
        found: dict[int, list[tuple[int, bytes]]] = {}
        ends = set(self.eos_token_ids)
        for index, token in enumerate(self.token_bytes):
            if token and index not in ends:
                found.setdefault(token[0], []).append((index, token))
        return found

    @cached_property
    def texts(self) -> Tensor:
        """[vocab] bool: the tokens that stand for some text."""
        return torch.tensor([bool(token) for token in self.token_bytes])

    def unpack(self, bits: bytes) -> Tensor:
        """[vocab] bool from llguidance's bits."""
        flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        return torch.from_numpy(flags[: self.vocab_size].view(np.bool_))


@dataclass(frozen=True)
class _Tokens:
    """A vocabulary in the form in which llguidance takes one."""

    tokenizer: Tokenizer
    tokens: list[bytes]
    eos_token_id: int
    bos_token_id: int | None = None

    @property
    def special_token_ids(self) -> list[int]:
        return [index for index, token in enumerate(self.tokens) if not token]

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("a tokenizer of text")  # llguidance asks whether bytes will do
        return self.tokenizer.encode(text)


_vocabularies: WeakKeyDictionary[Tokenizer, dict[int, GrammarVocabulary]] = WeakKeyDictionary()
_guard = threading.Lock()


def grammar_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> GrammarVocabulary:
    """The vocabulary of a model, made once: it takes a few tenths of a second."""
    with _guard:
        by_size = _vocabularies.setdefault(tokenizer, {})
        if vocab_size not in by_size:
            by_size[vocab_size] = GrammarVocabulary(tokenizer, vocab_size)
        return by_size[vocab_size]


class Grammar:
    """A compiled grammar over a vocabulary, from which any number of texts begin."""

    def __init__(self, vocabulary: GrammarVocabulary, lark: str) -> None:
        """Raises GrammarError in the compiler's words. May take a second."""
        self.vocabulary = vocabulary
        self._matcher = run_with_large_stack(lambda: self._compile(lark))

    def _compile(self, lark: str) -> llguidance.LLMatcher:
        text = llguidance.LLMatcher.grammar_from_lark(lark)
        matcher = llguidance.LLMatcher(
            self.vocabulary.tokens, text, log_level=0, limits=_PARSER_LIMITS
        )
        if matcher.is_error():
            raise GrammarError(one_line(matcher.get_error()))
        self._try_beginning(matcher.deep_copy())
        return matcher

    def begin(self) -> GrammarMatch:
        """A text that is empty so far."""
        return GrammarMatch(self.vocabulary, self._matcher.deep_copy())

    def _try_beginning(self, matcher: llguidance.LLMatcher) -> None:
        """What is too much shows at the beginning of a text, most often behind a brace."""
        matcher.compute_bitmask()
        brace = self.vocabulary.byte_tokens(b"{")
        if brace and matcher.validate_tokens(brace):
            matcher.consume_tokens(brace)
            matcher.compute_bitmask()
        if matcher.is_error():
            raise GrammarError(one_line(matcher.get_error()))


def json_grammar(vocabulary: GrammarVocabulary, schema: Mapping[str, Any]) -> Grammar:
    """Texts that are JSON and fit a JSON schema, with little white space and none at the end.

    Raises GrammarError for a schema that cannot be compiled.
    """
    rule = schema_rule(schema)
    return Grammar(
        vocabulary,
        f"start: LEAD? json\nLEAD: /{_LEADING_SPACE}/\njson: {rule}\n",
    )


def schema_rule(schema: Mapping[str, Any]) -> str:
    """A JSON schema as it stands in a Lark grammar.

    Raises GrammarError for one that cannot be compiled, in time and alone: an error in the whole
    grammar would speak of lines that no client has written.
    """
    check_schema(schema)
    compiled = {**schema, "x-guidance": _SCHEMA_OPTIONS}
    text = json.dumps(compiled)
    if len(text) > MAX_SCHEMA_CHARS:
        raise GrammarError(f"a schema has at most {MAX_SCHEMA_CHARS} characters")
    check_endings(schema)
    SCHEMA_TRIAL.check(compiled)
    return f"%json {text}"


class GrammarMatch:
    """A text on its way through a grammar. Used by one thread, once at a time."""

    def __init__(self, vocabulary: GrammarVocabulary, matcher: llguidance.LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._mask: Future[Tensor] | None = None
        self.is_over = False  # whether the text is whole, and nothing can be added to it

    def prepare(self) -> None:
        """Has the next mask computed by another thread."""
        if self._mask is None and not self.is_over:
            self._mask = _masks.submit(self._compute)

    def mask(self) -> Tensor:
        """[vocab] bool: the tokens that may come next. Raises GenerationError."""
        self.prepare()
        if self._mask is None:
            raise GenerationError("a text that is over has no next token")
        return self._mask.result()

    def accept(self, token_id: int) -> None:
        """Raises GenerationError for a token that may not come."""
        self._accept([token_id])

    def accepts_bytes(self, data: bytes) -> bool:
        """Whether the text may go on so."""
        self._settle()
        ids = self._vocabulary.byte_tokens(data)
        return ids is not None and int(self._matcher.validate_tokens(ids)) == len(ids)

    def accept_bytes(self, data: bytes) -> None:
        """Raises GenerationError for what may not come."""
        if data:
            self._accept(self._vocabulary.byte_tokens(data) or [])

    def _accept(self, ids: list[int]) -> None:
        self._settle()
        self._mask = None
        if not ids or not self._matcher.consume_tokens(ids):
            raise GenerationError(_failure(self._matcher))
        self.is_over = self._matcher.is_stopped()

    def _compute(self) -> Tensor:
        mask = self._vocabulary.unpack(self._matcher.compute_bitmask())
        if self._matcher.is_error():
            raise GenerationError(_failure(self._matcher))
        return mask

    def _settle(self) -> None:
        """Waits for the other thread, as a matcher does one thing at a time."""
        if self._mask is not None:
            self._mask.result()


def _failure(matcher: llguidance.LLMatcher) -> str:
    reason = one_line(matcher.get_error()) or str(matcher.stop_reason())
    return f"the reply cannot follow its grammar any further: {reason}; simplify the schema"
