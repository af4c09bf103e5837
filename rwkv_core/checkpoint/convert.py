"""Writes any RWKV-7 checkpoint as a GGUF file with the conventions of llama.cpp's `rwkv7`."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TypeVar

import numpy as np

from rwkv_core.checkpoint.architecture import read_config
from rwkv_core.checkpoint.base import PLAIN_TYPES, Checkpoint, TranslatedCheckpoint, tensor_bytes
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Bytes, dequantize
from rwkv_core.checkpoint.ggml_quantize import MAX_VALUES, check_range, quantize_blocks
from rwkv_core.checkpoint.gguf_format import ARCHITECTURE, UNLIMITED_CONTEXT
from rwkv_core.checkpoint.gguf_vocabulary import vocabulary_metadata
from rwkv_core.checkpoint.gguf_writer import GGUFWriter, MetadataValue
from rwkv_core.checkpoint.metadata_keys import CHAT_TEMPLATE_KEY, LAYER_NORM_EPS_KEY
from rwkv_core.checkpoint.names import (
    BLOCK_LEAVES,
    GGUF,
    LERPS,
    LOW_RANK,
    OUTER_NAMES,
    block_leaf,
    is_low_rank,
    is_unused,
    num_dims,
)
from rwkv_core.checkpoint.recipes import Recipe, find_recipe
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError, quoted
from rwkv_core.tokenizer import Tokenizer

# llama.cpp's number (llama_ftype) for the type that most of an unquantized file is stored in.
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}

# The version of ggml's block layouts (GGML_QNT_VERSION).
_QUANTIZATION_VERSION = 2

_CONTEXT_LENGTH_KEY = f"{ARCHITECTURE}.context_length"

# Values that a thread encodes at once (whole rows), and how many such pieces each thread may be
# ahead of the file: what writing costs in memory beside the tensor itself.
_PIECE_VALUES = 1 << 18
_PIECES_PER_THREAD = 3

_TYPE_NAMES = {dtype: name for name, dtype in PLAIN_TYPES.items()}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Output:
    """A tensor of the new file: the canonical tensors that it is made of, one or the six lerps."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    parts: tuple[str, ...]


def convert_to_gguf(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    out_path: str | os.PathLike[str],
    *,
    name: str,
    quantize: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    extra_metadata: Mapping[str, MetadataValue] | None = None,
) -> None:
    """Writes `checkpoint` with its vocabulary to `out_path`, whole or not at all.

    Without `quantize` matrices keep their type (quantized ones become F32) and the low-rank pairs
    are F32; with the name of a recipe (`recipes.RECIPES`) it says what becomes of them. Vectors
    are always F32. `name` becomes general.name; `extra_metadata` is added, or replaces what would
    be written. One tensor is in memory at a time, encoded by as many threads as there are
    processors. `progress` gets (bytes written, bytes of all).
    Raises OptionError for an unknown recipe, CheckpointError when the checkpoint is no whole RWKV-7
    model, holds numbers that the type cannot store, or the file cannot be written, TokenizerError
    when the tokenizer has more tokens than the model.
    """
    recipe = find_recipe(quantize) if quantize is not None else None
    config = read_config(checkpoint)
    outputs = _plan(checkpoint, config, recipe)
    metadata: dict[str, MetadataValue] = {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": name,
        "general.file_type": recipe.file_type if recipe else _file_type(outputs),
        "general.quantization_version": _QUANTIZATION_VERSION,
        **_hyper_parameters(checkpoint, config),
        **vocabulary_metadata(tokenizer, config.vocab_size),
    }
    metadata |= _inherited(checkpoint)
    metadata |= extra_metadata or {}
    num_threads = _num_processors()
    with (
        GGUFWriter(out_path, progress=progress) as writer,
        ThreadPoolExecutor(num_threads, "quantize") as pool,
    ):
        for key, value in metadata.items():
            writer.add_metadata(key, value)
        for output in outputs:
            writer.add_tensor(output.name, output.shape, output.type_name)
        workers = _Workers(pool, _PIECES_PER_THREAD * num_threads)
        for output in outputs:
            writer.write_tensor(output.name, _encoded(checkpoint, output, workers))


def _plan(checkpoint: Checkpoint, config: ModelConfig, recipe: Recipe | None) -> list[_Output]:
    """All tensors of the new file in their order: embedding, blocks, head."""
    outer = [_output(checkpoint, name, name, recipe) for name in OUTER_NAMES]
    blocks = [
        output
        for layer in range(config.n_layer)
        for output in _block_outputs(checkpoint, layer, recipe)
    ]
    return [*outer[:3], *blocks, *outer[3:]]


def _block_outputs(checkpoint: Checkpoint, layer: int, recipe: Recipe | None) -> Iterator[_Output]:
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
        yield _output(checkpoint, name, source, recipe)


def _output(checkpoint: Checkpoint, name: str, source: str, recipe: Recipe | None) -> _Output:
    info = checkpoint.tensors[source]
    block = block_leaf(name)
    leaf = block[1] if block else name
    stored_name = GGUF.stored_name(name)
    if leaf == "att.r_k":
        return _Output(stored_name, (prod(info.shape),), "F32", (source,))
    if leaf in LOW_RANK:
        type_name = _half_if_it_fits(checkpoint, source) if recipe else "F32"
        return _Output(stored_name, info.shape[::-1], type_name, (source,))
    type_name = "F32"
    if num_dims(name) == 2:
        if recipe is not None:
            type_name = recipe.type_of(leaf, info.shape[-1])
            if type_name == "F16":
                type_name = _half_if_it_fits(checkpoint, source)
        elif info.type_name in PLAIN_TYPES:
            type_name = info.type_name
    return _Output(stored_name, info.shape, type_name, (source,))


def _half_if_it_fits(checkpoint: Checkpoint, name: str) -> str:
    """ "F16", or "F32" for numbers beyond its range."""
    stored_type, slices = _stored_rows(checkpoint, name)
    peaks = [float(np.abs(dequantize(stored_type, packed)).max()) for packed in slices]
    return "F16" if max(peaks) <= MAX_VALUES["F16"] else "F32"


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
    context_length = checkpoint.metadata.get(_CONTEXT_LENGTH_KEY, UNLIMITED_CONTEXT)
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


@dataclass(frozen=True)
class _Workers:
    """Calls a function for many items on several threads; few results wait in memory."""

    pool: Executor
    num_ahead: int

    def map(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[_Result]:
        """The results in the order of the items, which are taken as they are needed."""
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(self.pool.submit(function, item))
                if len(waiting) > self.num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _encoded(checkpoint: Checkpoint, output: _Output, workers: _Workers) -> Iterator[Bytes]:
    """The bytes of a tensor of the new file, in pieces."""
    row_length = output.shape[-1]
    num_rows = max(1, _PIECE_VALUES // row_length)
    for part in output.parts:
        stored_type, slices = _stored_rows(checkpoint, part)
        step = num_rows * LAYOUTS[stored_type].num_bytes(row_length)
        encode = partial(_encode, stored_type, output.type_name)
        try:
            for packed in slices:
                pieces = (packed[at : at + step] for at in range(0, packed.size, step))
                yield from workers.map(encode, pieces)
        except ValueError as error:
            raise CheckpointError(checkpoint.path, f"the tensor {quoted(part)} {error}") from error


def _stored_rows(checkpoint: Checkpoint, name: str) -> tuple[str, Iterator[Bytes]]:
    """The type and the bytes of a tensor in GGUF's order, so many whole rows at a time; each slice
    is valid until the next."""
    if num_dims(name) == 2 and isinstance(checkpoint, TranslatedCheckpoint):
        slices = (packed for _, packed in checkpoint.row_slices(name))
        return checkpoint.tensors[name].type_name, slices
    tensor = checkpoint.read(name)
    if is_low_rank(name):
        tensor = tensor.t().contiguous()
    return _TYPE_NAMES[tensor.dtype], iter((tensor_bytes(tensor),))


def _encode(stored_type: str, type_name: str, packed: Bytes) -> Bytes:
    """Values of one type as those of another. It is all numpy: torch would start threads."""
    if stored_type == type_name:
        return packed
    values = dequantize(stored_type, packed)
    if type_name == "F32":
        return values.view(np.uint8)
    if type_name == "F16":
        check_range(type_name, values)
        return values.astype(np.float16).view(np.uint8)
    return quantize_blocks(type_name, values)


def _num_processors() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
