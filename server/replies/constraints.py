"""What a request asks of the form of its reply: `format`, and calls of the tools it offers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from rwkv_core.chat.call_constraint import CallConstraint, call_grammar
from rwkv_core.chat.reply_stages import ContentConstraint
from rwkv_core.constraint import TokenConstraint
from rwkv_core.errors import GrammarError
from rwkv_core.grammar import grammar_vocabulary, json_grammar
from rwkv_core.model import Model
from server.replies.prompts import Prompt
from server.wire.errors import ApiError
from server.wire.go_text import go_quote

log = logging.getLogger(__name__)

Schema = Mapping[str, Any]

# What "json" asks for: Ollama's grammar of that name takes an object at the top.
_ANY_OBJECT: Schema = {"type": "object"}


def read_format(value: Any) -> Schema | None:
    """The JSON schema that a request's `format` asks for; None for free text.

    Raises ApiError (400) for what is no format.
    """
    if value is None or value == "":
        return None
    if value == "json":
        return _ANY_OBJECT
    if isinstance(value, dict):
        return value
    text = go_quote(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    raise ApiError(400, f'invalid format: {text}; expected "json" or a valid JSON Schema object')


def reply_constraint(model: Model, prompt: Prompt, schema: Schema | None) -> TokenConstraint | None:
    """The rule for one reply; None if it is free. May take a second.

    Raises ApiError (400) for a schema that cannot be compiled.
    """
    tools = prompt.conversation.tools if prompt.conversation and prompt.tools else ()
    # A template has its own words for a call, which no grammar here knows.
    tool_format = prompt.format.tools if prompt.template is None else None
    if schema is None and not (tools and tool_format):
        return None
    vocabulary = grammar_vocabulary(model.tokenizer, model.config.vocab_size)
    if schema is not None:
        try:
            grammar = json_grammar(vocabulary, schema)
        except GrammarError as error:
            raise ApiError(400, f"invalid JSON schema in format: {error}") from None
        return ContentConstraint(grammar, prompt.preamble(), prompt.stops)
    assert tool_format is not None
    try:
        calls = call_grammar(vocabulary, tool_format, tools)
    except GrammarError as error:  # so many tools that they are too much together
        log.warning("calls of the offered tools are not constrained: %s", error)
        return None
    return CallConstraint(calls, model.tokenizer, prompt.format, prompt.think) if calls else None
