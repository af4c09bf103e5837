"""Writes any RWKV-7 checkpoint as a GGUF file with the conventions of llama.cpp's `rwkv7`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from rwkv_core.checkpoint.architecture import read_config
from rwkv_core.checkpoint.base import LAYER_NORM_EPS_KEY, PLAIN_TYPES, Checkpoint, quoted
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Bytes, quantize_q8_0
from rwkv_core.checkpoint.gguf_format import ARCHITECTURE
from rwkv_core.checkpoint.gguf_vocabulary import CHAT_TEMPLATE_KEY, vocabulary_metadata
from rwkv_core.checkpoint.gguf_writer import GGUFWriter, MetadataValue
from rwkv_core.checkpoint.names import (
    BLOCK_LEAVES,
    GGUF,
    LERPS,
    LOW_RANK,
    OUTER_NAMES,
    block_leaf,
    is_unused,
    num_dims,
)
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError
from rwkv_core.tokenizer import Tokenizer

# llama.cpp's number for the type that most of a file is stored in (llama_ftype).
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}

# The version of ggml's block layouts (GGML_QNT_VERSION).
_QUANTIZATION_VERSION = 2

# What llama.cpp's converter writes for models whose context nothing limits.
_UNLIMITED_CONTEXT = 1 << 20
_CONTEXT_LENGTH_KEY = f"{ARCHITECTURE}.context_length"

# Values encoded at once (whole rows): what writing costs in memory beside the tensor itself.
_SLICE_VALUES = 1 << 20


@dataclass(frozen=True)
class _Output:
    """A tensor of the new file: the canonical tensors that it is made of, and how."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    parts: tuple[str, ...]
    is_transposed: bool = False


def convert_to_gguf(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    out_path: str | os.PathLike[str],
    *,
    name: str,
    quantize: Literal["q8_0"] | None = None,
    progress: Callable[[int, int], None] | None = None,
    extra_metadata: Mapping[str, MetadataValue] | None = None,
) -> None:
    """Writes `checkpoint` with its vocabulary to `out_path`, whole or not at all.

    Without `quantize` matrices keep their type (quantized ones become F32); with "q8_0" those whose
    rows fill blocks of 32 become Q8_0. Vectors and the low-rank pairs are always F32, as llama.cpp
    keeps them. `name` becomes general.name; `extra_metadata` is added, or replaces what would be
    written. One tensor is in memory at a time. `progress` gets (bytes written, bytes of all).
    Raises CheckpointError when the checkpoint is no whole RWKV-7 model or the file cannot be
    written, TokenizerError when the tokenizer has more tokens than the model.
    """
    config = read_config(checkpoint)
    outputs = _plan(checkpoint, config, quantize)
    metadata: dict[str, MetadataValue] = {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": name,
        "general.file_type": _file_type(outputs),
        "general.quantization_version": _QUANTIZATION_VERSION,
        **_hyper_parameters(checkpoint, config),
        **vocabulary_metadata(tokenizer, config.vocab_size),
    }
    metadata |= _inherited(checkpoint)
    metadata |= extra_metadata or {}
    with GGUFWriter(out_path, progress=progress) as writer:
        for key, value in metadata.items():
            writer.add_metadata(key, value)
        for output in outputs:
            writer.add_tensor(output.name, output.shape, output.type_name)
        for output in outputs:
            writer.write_tensor(output.name, _encoded(checkpoint, output))


def _plan(
    checkpoint: Checkpoint, config: ModelConfig, quantize: Literal["q8_0"] | None
) -> list[_Output]:
    """All tensors of the new file in their order: embedding, blocks, head."""
    outer = [_output(checkpoint, name, name, quantize) for name in OUTER_NAMES]
    blocks = [
        output
        for layer in range(config.n_layer)
        for output in _block_outputs(checkpoint, layer, quantize)
    ]
    return [*outer[:3], *blocks, *outer[3:]]


def _block_outputs(
    checkpoint: Checkpoint, layer: int, quantize: Literal["q8_0"] | None
) -> Iterator[_Output]:
    prefix = f"blocks.{layer}."
    lerps = tuple(prefix + lerp for lerp in LERPS)
    width = checkpoint.tensors[lerps[0]].shape[0]
    yield _Output(GGUF.stored_name(lerps[0]), (len(lerps), 1, 1, width), "F32", lerps)
    for leaf in BLOCK_LEAVES:
        if leaf in LERPS:
            continue
        name = source = prefix + leaf
        if is_unused(name):
            # llama.cpp asks for v0, v1 and v2 in block 0 too, in the shapes of a0, a1 and a2, and
            # never uses them. Its converter writes copies.
            source = prefix + leaf.replace(".v", ".a")
        yield _output(checkpoint, name, source, quantize)


def _output(
    checkpoint: Checkpoint, name: str, source: str, quantize: Literal["q8_0"] | None
) -> _Output:
    info = checkpoint.tensors[source]
    block = block_leaf(name)
    leaf = block[1] if block else name
    if leaf == "att.r_k":
        return _Output(GGUF.stored_name(name), (prod(info.shape),), "F32", (source,))
    if leaf in LOW_RANK:
        return _Output(GGUF.stored_name(name), info.shape[::-1], "F32", (source,), True)
    type_name = "F32"
    if num_dims(name) == 2:
        if quantize is None and info.type_name in PLAIN_TYPES:
            type_name = info.type_name
        elif quantize == "q8_0" and info.shape[-1] % LAYOUTS["Q8_0"].values_per_block == 0:
            type_name = "Q8_0"
    return _Output(GGUF.stored_name(name), info.shape, type_name, (source,))


def _file_type(outputs: list[_Output]) -> int:
    """The type of most of the values."""
    num_values = Counter[str]()
    for output in outputs:
        num_values[output.type_name] += prod(output.shape)
    return _FILE_TYPES[num_values.most_common(1)[0][0]]


def _inherited(checkpoint: Checkpoint) -> dict[str, MetadataValue]:
    """What a GGUF file says about its model (authors, license, …) holds for the copy as well."""
    own = ("general.architecture", "general.type", "general.name")
    return {
        key: value
        for key, value in checkpoint.metadata.items()
        if ((key.startswith("general.") and key not in own) or key == CHAT_TEMPLATE_KEY)
        and (isinstance(value, str) or _is_list_of_strings(value))
    }


def _is_list_of_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(element, str) for element in value)


def _hyper_parameters(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, MetadataValue]:
    """The keys that llama.cpp reads: all but the epsilon and the gate's rank are required there."""
    context_length = checkpoint.metadata.get(_CONTEXT_LENGTH_KEY, _UNLIMITED_CONTEXT)
    values: dict[str, MetadataValue] = {
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_ffn,
        "attention.head_count": 0,  # llama.cpp derives the heads from the next key
        "wkv.head_size": config.head_size,
        "attention.decay_lora_rank": config.decay_rank,
        "attention.iclr_lora_rank": config.iclr_rank,
        # A single block has no value residual, and so no rank: llama.cpp uses none either then.
        "attention.value_residual_mix_lora_rank": config.value_rank or config.iclr_rank,
        "attention.gate_lora_rank": config.gate_rank,
    }
    return {
        _CONTEXT_LENGTH_KEY: context_length,
        LAYER_NORM_EPS_KEY: config.layer_norm_eps,
        **{f"{ARCHITECTURE}.{key}": value for key, value in values.items()},
    }


def _encoded(checkpoint: Checkpoint, output: _Output) -> Iterator[Bytes]:
    """The bytes of a tensor of the new file, in pieces."""
    for part in output.parts:
        try:
            yield from _encoded_rows(checkpoint.read(part), output)
        except ValueError as error:
            raise CheckpointError(checkpoint.path, f"the tensor {quoted(part)} {error}") from error


def _encoded_rows(tensor: Tensor, output: _Output) -> Iterator[Bytes]:
    # [..., columns], the rows encoded some at a time
    rows = (tensor.t() if output.is_transposed else tensor).reshape(-1, output.shape[-1])
    step = max(1, _SLICE_VALUES // rows.shape[1])
    for start in range(0, len(rows), step):
        yield _encode(rows[start : start + step], output.type_name)


def _encode(rows: Tensor, type_name: str) -> Bytes:
    if type_name == "Q8_0":
        return quantize_q8_0(rows.to(torch.float32).contiguous().numpy())
    plain = rows.to(PLAIN_TYPES[type_name]).contiguous().reshape(-1)
    encoded: Bytes = plain.view(torch.uint8).numpy()
    return encoded
