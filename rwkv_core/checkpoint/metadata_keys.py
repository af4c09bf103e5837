"""Keys of a model file's metadata that are read in more than one place; in every format GGUF's."""

from __future__ import annotations

CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
# The layer norms' epsilon.
LAYER_NORM_EPS_KEY = "rwkv7.attention.layer_norm_epsilon"

# In a GGUF file: the text of a tokenizer.json (our own key), and llama.cpp's keys of a vocabulary.
HUGGING_FACE_JSON_KEY = "tokenizer.huggingface.json"
GGUF_MODEL_KEY = "tokenizer.ggml.model"
GGUF_TOKENS_KEY = "tokenizer.ggml.tokens"
