"""The tokenizer's part of a GGUF file's metadata, as llama.cpp's converter writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rwkv_core.checkpoint.gguf_format import ARCHITECTURE
from rwkv_core.checkpoint.gguf_writer import MetadataValue
from rwkv_core.checkpoint.metadata_keys import CHAT_TEMPLATE_KEY
from rwkv_core.errors import TokenizerError
from rwkv_core.tokenizer import Tokenizer, WorldTokenizer

HUGGING_FACE_JSON_KEY = "tokenizer.huggingface.json"

# llama.cpp's token types (llama_token_type).
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

# Converted World models end a turn on "\n\n", for runtimes that have no stop strings.
_END_OF_TURN = (261, b"\n\n")

# The chat format of the released models, without thinking, for runtimes that read it from the file.
BUILT_IN_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- 'System: ' + message['content']|trim + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Assistant: ' + message['content']|trim + '\\n\\n' -}}
{%- else -%}
{{- 'User: ' + message['content']|trim + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant:' -}}
{%- endif -%}
"""


def vocabulary_metadata(tokenizer: Tokenizer, num_rows: int) -> dict[str, MetadataValue]:
    """Keys and values for a model with `num_rows` embeddings: one token for each of them.

    Raises TokenizerError when tokens are left over, or for an unknown kind of tokenizer.
    """
    if isinstance(tokenizer, WorldTokenizer):
        metadata = _world(tokenizer, num_rows)
    else:
        json_text = getattr(tokenizer, "json_text", None)
        if not isinstance(json_text, str):
            raise TokenizerError(f"GGUF files cannot carry a {type(tokenizer).__name__}")
        metadata = _hugging_face(json_text, num_rows)
    metadata[CHAT_TEMPLATE_KEY] = BUILT_IN_CHAT_TEMPLATE
    for end_of_text in sorted(tokenizer.eos_token_ids)[:1]:
        metadata["tokenizer.ggml.bos_token_id"] = end_of_text
        metadata["tokenizer.ggml.eos_token_id"] = end_of_text
    return metadata


def _world(tokenizer: WorldTokenizer, num_rows: int) -> dict[str, MetadataValue]:
    stored = tokenizer.to_gguf()
    kinds = {
        token_id: (token, _NORMAL)
        for token_id, token in enumerate(stored)
        if tokenizer.token_bytes(token_id)
    }
    kinds |= {token_id: (stored[token_id], _CONTROL) for token_id in tokenizer.eos_token_ids}
    metadata: dict[str, MetadataValue] = {
        "tokenizer.ggml.model": "rwkv",
        **_tokens(kinds, num_rows),
    }
    token_id, text = _END_OF_TURN
    if tokenizer.token_bytes(token_id) == text:
        metadata["tokenizer.ggml.eot_token_id"] = token_id
    return metadata


def _hugging_face(json_text: str, num_rows: int) -> dict[str, MetadataValue]:
    """The whole `tokenizer.json`, and its parts under llama.cpp's keys if that knows the kind."""
    content = json.loads(json_text)
    metadata: dict[str, MetadataValue] = {HUGGING_FACE_JSON_KEY: json_text}
    model = content["model"]
    if model.get("type") != "BPE" or not _is_byte_level(content.get("pre_tokenizer")):
        # llama.cpp runs such a model on token ids alone.
        size_key = f"{ARCHITECTURE}.vocab_size"
        return {**metadata, "tokenizer.ggml.model": "none", size_key: num_rows}
    kinds = {token_id: (token, _NORMAL) for token, token_id in model["vocab"].items()}
    for token in content.get("added_tokens") or ():
        kind = _CONTROL if token.get("special") else _USER_DEFINED
        kinds[token["id"]] = (token["content"], kind)
    return {
        **metadata,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",  # GPT-2's splitting, which GPT-NeoX's vocabulary shares
        **_tokens(kinds, num_rows),
        "tokenizer.ggml.merges": [_merge(pair) for pair in model["merges"]],
    }


def _tokens(kinds: Mapping[int, tuple[str, int]], num_rows: int) -> dict[str, MetadataValue]:
    """Tokens and their types for all rows; rows without a token are padding, as llama.cpp's."""
    num_tokens = 1 + max(kinds, default=0)
    if num_tokens > num_rows:
        raise TokenizerError(
            f"the tokenizer has {num_tokens} tokens, the model {num_rows}: use the tokenizer that "
            "the model was trained with"
        )
    rows = [kinds.get(row, (f"[PAD{row}]", _UNUSED)) for row in range(num_rows)]
    return {
        "tokenizer.ggml.tokens": [token for token, _ in rows],
        "tokenizer.ggml.token_type": [kind for _, kind in rows],
    }


def _is_byte_level(pre_tokenizer: Any) -> bool:
    """Whether text is split as GPT-2 splits it."""
    if not isinstance(pre_tokenizer, dict) or pre_tokenizer.get("type") != "ByteLevel":
        return False
    return bool(pre_tokenizer.get("use_regex", True))


def _merge(pair: str | Sequence[str]) -> str:
    # Newer files have pairs, older ones a string with a blank.
    return pair if isinstance(pair, str) else " ".join(pair)
