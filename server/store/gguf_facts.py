"""What the server wants to know about a model file without loading it, out of its GGUF header."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rwkv_core.checkpoint.gguf_file import GGUFFile
from rwkv_core.checkpoint.gguf_format import UNLIMITED_CONTEXT
from rwkv_core.checkpoint.metadata_keys import GGUF_MODEL_KEY, GGUF_TOKENS_KEY
from rwkv_core.config import state_nbytes
from server.wire.go_text import human_number

ARCHITECTURE = "rwkv7"

# llama.cpp's numbers for `general.file_type`, by the names that Ollama shows.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    32: "BF16",
}


# RWKV's authors say in a file's name how long the texts were: rwkv7-g1-2.9b-20250519-ctx4096.
_TRAINING_LENGTH = re.compile("(?<![a-z0-9])ctx([1-9][0-9]{1,6})(?![0-9])", re.IGNORECASE)

# Longer lists, such as the vocabulary, are shown only when asked for.
_MAX_SHOWN_ITEMS = 5


@dataclass(frozen=True)
class TensorFact:
    """`shape` in the file's own order, the reverse of PyTorch's, as Ollama shows it."""

    name: str
    type_name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GGUFFacts:
    """A model file's header."""

    metadata: Mapping[str, Any]
    tensors: tuple[TensorFact, ...]
    bos: str = ""  # the tokens that begin and end a text, as a chat template writes them
    eos: str = ""

    @property
    def architecture(self) -> str:
        return self._text("general.architecture")

    @property
    def name(self) -> str:
        return self._text("general.name")

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def parameter_size(self) -> str:
        return human_number(self.num_parameters)

    @property
    def quantization(self) -> str:
        value = self.metadata.get("general.file_type")
        return _FILE_TYPES.get(value, "unknown") if isinstance(value, int) else "unknown"

    @property
    def context_length(self) -> int:
        """What the file says of it, which is no limit to an RNN; 0 when it says nothing."""
        return self._number(f"{self.architecture}.context_length")

    @property
    def training_length(self) -> int:
        """How many tokens the texts had that the model was trained on; 0 if nobody says so."""
        if found := _TRAINING_LENGTH.search(self.name):
            return int(found[1])
        return self.context_length if self.context_length < UNLIMITED_CONTEXT else 0

    @property
    def embedding_length(self) -> int:
        return self._number(f"{self.architecture}.embedding_length")

    @property
    def state_bytes(self) -> int:
        """Of the state of one chat; 0 when the file does not say."""
        names = ("block_count", "embedding_length", "wkv.head_size")
        sizes = [self._number(f"{self.architecture}.{name}") for name in names]
        return state_nbytes(*sizes) if min(sizes) > 0 else 0

    def _text(self, key: str) -> str:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def _number(self, key: str) -> int:
        value = self.metadata.get(key)
        return value if isinstance(value, int) else 0


def read_facts(path: Path) -> GGUFFacts:
    """The header of a GGUF file, long lists emptied. Remembered until the file changes.

    Raises CheckpointError for what is no whole GGUF file.
    """
    try:
        status = path.stat()
    except OSError:
        return read_all_facts(path)  # says in its own words what is wrong
    return _remembered(path, status.st_size, status.st_mtime_ns)


def read_all_facts(path: Path) -> GGUFFacts:
    """The header with its long lists, such as the vocabulary. Raises CheckpointError."""
    file = GGUFFile(path)
    try:
        tensors = tuple(
            TensorFact(tensor.name, tensor.layout.name, tuple(reversed(tensor.shape)))
            for tensor in file.tensors.values()
        )
        metadata = dict(file.metadata)
        return GGUFFacts(metadata, tensors, _token(metadata, "bos"), _token(metadata, "eos"))
    finally:
        file.close()


def _token(metadata: Mapping[str, Any], kind: str) -> str:
    """The text of the "bos" or "eos" token; "" in the World vocabulary, where it has none."""
    tokens, number = metadata.get(GGUF_TOKENS_KEY), metadata.get(f"tokenizer.ggml.{kind}_token_id")
    if metadata.get(GGUF_MODEL_KEY) == "rwkv" or not isinstance(tokens, list):
        return ""
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        return ""
    return tokens[number] if isinstance(tokens[number], str) else ""


@lru_cache(maxsize=64)
def _remembered(path: Path, size: int, modified_ns: int) -> GGUFFacts:
    facts = read_all_facts(path)
    short = {
        key: [] if isinstance(value, list) and len(value) > _MAX_SHOWN_ITEMS else value
        for key, value in facts.metadata.items()
    }
    return replace(facts, metadata=short)
