"""Tokenizers: RWKV's own (World and other byte vocabularies) and Hugging Face's byte-level BPE."""

from rwkv_core.tokenizer.base import Tokenizer
from rwkv_core.tokenizer.huggingface import HuggingFaceTokenizer
from rwkv_core.tokenizer.incremental import IncrementalDecoder
from rwkv_core.tokenizer.world import WorldTokenizer

__all__ = ["HuggingFaceTokenizer", "IncrementalDecoder", "Tokenizer", "WorldTokenizer"]
