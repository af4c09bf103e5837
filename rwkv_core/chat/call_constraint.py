"""Calls of tools in a reply: from where one has certainly begun, it follows a grammar.

A grammar that began too early would make a call out of an answer, and a client would run it. G1
writes a call as the first thing of its content, or right behind another call, and as an object in a
fence whose first key is "name":

    ```json
    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    ```

Only when all of that is there, up to the colon behind "name", is it a call: then the name is one of
the offered ones, the arguments fit its schema, and the fence is closed. Fences further down in a
text, with other languages, arrays, or objects that begin otherwise are text, and stay free. (An
answer that is nothing but an object with a name first, in a fence, in a chat with tools, would be
taken for a call: in this format nobody could tell.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rwkv_core.chat.messages import Think
from rwkv_core.chat.prompt_format import PromptFormat, ToolFormat
from rwkv_core.chat.reply import ReplyKind, ReplyParser
from rwkv_core.errors import GrammarError
from rwkv_core.grammar import (
    JSON_SPACE,
    Grammar,
    GrammarMatch,
    GrammarVocabulary,
    schema_rule,
)
from rwkv_core.tokenizer import IncrementalDecoder, Tokenizer

# Characters in which a call must have begun, fence included.
_MAX_OPENING_CHARS = 64
# Tokens in which a call has to be complete; in a longer one the model may end the reply. One that
# has lost its way would otherwise go on inside a text for ever.
_MAX_CLOSED_TOKENS = 256
# Every token that may complete the opening has its last character.
_OPENING_END = b":"


def call_grammar(
    vocabulary: GrammarVocabulary, fmt: ToolFormat, tools: Sequence[Mapping[str, Any]]
) -> Grammar | None:
    """Calls of these tools, from behind the colon of "name" to the end of the fence; None for no
    tools that have names.

    A tool whose parameters cannot be compiled (clients send what they like) takes any object.
    """
    rules: list[str] = []
    calls: list[str] = []
    for tool in tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not name:
            continue
        calls.append(
            f"{_quoted(json.dumps(name, ensure_ascii=False))} MIDDLE arguments_{len(calls)}"
        )
        rules.append(f"arguments_{len(rules)}: {_arguments_rule(vocabulary, function)}")
    if not calls:
        return None
    middle = rf"/({JSON_SPACE})?,({JSON_SPACE})?\"arguments\"({JSON_SPACE})?:({JSON_SPACE})?/"
    lines = [
        "start: SPACE? call SPACE? CLOSE",
        f"call: {' | '.join(calls)}",
        *rules,
        f"SPACE: /{JSON_SPACE}/",
        f"MIDDLE: {middle}",
        f"CLOSE: {_quoted('}' + chr(10) + fmt.call_close)}",
    ]
    return Grammar(vocabulary, "\n".join(lines) + "\n")


class CallConstraint:
    """See `TokenConstraint`: nothing is asked of a reply but that its calls are calls."""

    is_complete = False

    def __init__(
        self, grammar: Grammar, tokenizer: Tokenizer, fmt: PromptFormat, think: Think | None
    ) -> None:
        """`think` as in `ReplyParser`. The format has tools."""
        assert fmt.tools is not None
        self._vocabulary = grammar.vocabulary
        self._vocabulary.containing(_OPENING_END)  # now, rather than while others wait for a token
        self._grammar = grammar
        self._decoder = IncrementalDecoder(tokenizer)
        self._parser = ReplyParser(fmt, think)
        fence = re.escape(fmt.tools.call_open)
        self._opening = re.compile(rf'\s*{fence}\s*\{{\s*"name"\s*:')
        self._fence = fmt.tools.call_open
        self._head: str | None = ""  # content since its beginning or the last call; None: no call
        self._call: GrammarMatch | None = None
        self._num_in_call = 0

    def mask(self) -> Tensor | None:
        if self._call is not None:
            mask = self._call.mask()
            if self._num_in_call > _MAX_CLOSED_TOKENS:
                mask = mask.clone()
                mask[self._vocabulary.eos_token_ids] = True
            return mask
        refused = self._refused()
        if not refused:
            return None
        mask = torch.ones(self._vocabulary.vocab_size, dtype=torch.bool)
        mask[refused] = False
        return mask

    def accept(self, token_id: int) -> None:
        text = self._decoder.push(token_id)
        if self._call is not None:
            self._call.accept(token_id)
            self._num_in_call += 1
            if self._call.is_over:
                self._call, self._head = None, ""
            else:
                self._call.prepare()
            return
        if self._head is not None:
            parts = self._parser.push(text)
            self._head += "".join(each.text for each in parts if each.kind is ReplyKind.CONTENT)
            self._look()

    def _look(self) -> None:
        """Whether the content so far has opened a call, or will not."""
        assert self._head is not None
        opening = self._opening.match(self._head)
        if opening is not None:
            call = self._grammar.begin()
            call.accept_bytes(self._head[opening.end() :].encode())
            call.prepare()
            self._call, self._num_in_call = call, 0
        elif not self._may_open():
            self._head = None

    def _may_open(self) -> bool:
        assert self._head is not None
        head = self._head.lstrip()
        size = min(len(head), len(self._fence))
        return len(self._head) <= _MAX_OPENING_CHARS and head[:size] == self._fence[:size]

    def _refused(self) -> list[int]:
        """Tokens that open a call and go on with what is none."""
        if self._head is None or self._fence not in self._head:
            return []
        refused: list[int] = []
        match: GrammarMatch | None = None
        for token_id, token in self._vocabulary.containing(_OPENING_END):
            text = self._head + token.decode("utf-8", "replace")
            opening = self._opening.match(text)
            if opening is None:
                continue
            match = match or self._grammar.begin()
            if not match.accepts_bytes(text[opening.end() :].encode()):
                refused.append(token_id)
        return refused


def _arguments_rule(vocabulary: GrammarVocabulary, function: Mapping[str, Any]) -> str:
    """What the arguments of a call may be."""
    parameters = function.get("parameters")
    schema: dict[str, Any] = dict(parameters) if isinstance(parameters, Mapping) else {}
    schema["type"] = "object"
    if isinstance(schema.get("properties"), Mapping):
        schema.setdefault("additionalProperties", False)
    try:
        rule = schema_rule(schema)
        Grammar(vocabulary, f"start: {rule}\n")
    except GrammarError:
        return schema_rule({"type": "object"})
    return rule


def _quoted(text: str) -> str:
    """As it stands in a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)
