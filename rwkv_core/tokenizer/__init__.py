"""Tokenizers: RWKV's own (World and other byte vocabularies)."""

from rwkv_core.tokenizer.base import Tokenizer
from rwkv_core.tokenizer.world import WorldTokenizer

__all__ = ["Tokenizer", "WorldTokenizer"]
