"""Conversion to GGUF: llama.cpp's conventions, and nothing lost on the way."""

from __future__ import annotations

import json
import os
import re
import threading
import weakref
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from jinja2 import Environment
from torch import Tensor

from rwkv_core.checkpoint import Checkpoint, open_checkpoint, read_config
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.ggml_quantize import quantize_blocks
from rwkv_core.checkpoint.names import GGUF
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError, OptionError, TokenizerError
from rwkv_core.tokenizer import WorldTokenizer
from tests.tools.gguf_files import SMALL, MemoryCheckpoint, random_checkpoint
from tests.tools.random_checkpoint import RandomCheckpoint, random_tensors, write_rwkv_cpp

VOCABULARY = WorldTokenizer([None, *(bytes([byte]) for byte in range(256)), b"\n\n", b"'\"\\"])

# What llama.cpp checks the tensors of a block against, in its order (the fastest dimension first).
D, F, W, A, V, G = (
    SMALL.n_embd, SMALL.n_ffn, SMALL.decay_rank, SMALL.iclr_rank, SMALL.value_rank, SMALL.gate_rank,
)  # fmt: skip
BLOCK_DIMS = {
    **{f"{norm}.{part}": [D] for norm in ("attn_norm", "attn_norm_2", "time_mix_ln")
       for part in ("weight", "bias")},
    **{f"time_mix_{vector}.weight": [D] for vector in ("w0", "a0", "v0", "k_k", "k_a", "r_k")},
    "time_mix_w1.weight": [D, W], "time_mix_w2.weight": [W, D],
    "time_mix_a1.weight": [D, A], "time_mix_a2.weight": [A, D],
    "time_mix_v1.weight": [D, V], "time_mix_v2.weight": [V, D],
    "time_mix_g1.weight": [D, G], "time_mix_g2.weight": [G, D],
    "time_mix_lerp_fused.weight": [D, 1, 1, 6],
    **{f"time_mix_{part}.weight": [D, D] for part in ("receptance", "key", "value", "output")},
    "channel_mix_lerp_k.weight": [D],
    "channel_mix_key.weight": [D, F], "channel_mix_value.weight": [F, D],
}  # fmt: skip
OUTER_DIMS = {
    "token_embd.weight": [D, SMALL.vocab_size],
    "token_embd_norm.weight": [D],
    "token_embd_norm.bias": [D],
    "output_norm.weight": [D],
    "output_norm.bias": [D],
    "output.weight": [D, SMALL.vocab_size],
}
MATRICES = {
    "token_embd", "output", "time_mix_receptance", "time_mix_key", "time_mix_value",
    "time_mix_output", "channel_mix_key", "channel_mix_value",
}  # fmt: skip


# Rows of 256, which the K formats need.
WIDE = ModelConfig(2, 256, 64, 300, 512, 8, 12, 4, 20)

# Error over weights, both as root mean squares, of numbers with a normal distribution; the vectors
# are stored exactly.
LARGEST_ERRORS = {
    "F32": 0.0,
    "F16": 3e-4,
    "Q8_0": 0.006,
    "Q6_K": 0.0175,
    "Q5_K": 0.036,
    "Q5_1": 0.04,
    "Q5_0": 0.045,
    "Q4_K": 0.072,
    "Q4_0": 0.09,
}


def expected_type(stored_name: str, matrix_type: str) -> str:
    """The type of a tensor in a file whose matrices are of `matrix_type`."""
    stem = stored_name.rpartition(".")[0].rpartition(".")[2]
    if stem in MATRICES:
        return matrix_type
    return "F16" if re.fullmatch("time_mix_[wavg][12]", stem) else "F32"


def convert(
    tmp_path: Path, checkpoint: Checkpoint | None = None, **options: Any
) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    """The file as the `gguf` package reads it, and its metadata."""
    path = tmp_path / "a.gguf"
    options.setdefault("name", "Small")
    convert_to_gguf(checkpoint or random_checkpoint(), VOCABULARY, path, **options)
    reader = gguf.GGUFReader(path)
    return reader, {key: field.contents() for key, field in reader.fields.items()}


def test_tensors_have_the_names_and_shapes_that_llama_cpp_demands(tmp_path: Path) -> None:
    reader, _ = convert(tmp_path)
    found = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}
    expected = dict(OUTER_DIMS)
    for layer in range(SMALL.n_layer):
        expected |= {f"blk.{layer}.{name}": dims for name, dims in BLOCK_DIMS.items()}
    # Block 0 has no value residual: placeholders in the shape of the learning rate's.
    expected |= {"blk.0.time_mix_v1.weight": [D, A], "blk.0.time_mix_v2.weight": [A, D]}
    assert found == expected
    assert reader.tensors[0].name == "token_embd.weight"
    assert reader.tensors[-1].name == "output.weight"


def test_names_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    reader, _ = convert(tmp_path)
    stems = {
        gguf.TENSOR_NAMES[kind].format(bid=1) for kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.RWKV7]
    }
    found = {
        tensor.name.rpartition(".")[0].replace("blk.0.", "blk.1.") for tensor in reader.tensors
    }
    assert found <= stems


def test_metadata_has_every_key_that_llama_cpp_requires(tmp_path: Path) -> None:
    _, metadata = convert(tmp_path)
    keys = gguf.Keys
    expected = {
        keys.General.ARCHITECTURE: "rwkv7",
        keys.General.TYPE: "model",
        keys.General.NAME: "Small",
        keys.General.FILE_TYPE: int(gguf.LlamaFileType.ALL_F32),
        keys.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
        keys.LLM.CONTEXT_LENGTH: 1 << 20,
        keys.LLM.EMBEDDING_LENGTH: SMALL.n_embd,
        keys.LLM.BLOCK_COUNT: SMALL.n_layer,
        keys.LLM.FEED_FORWARD_LENGTH: SMALL.n_ffn,
        keys.Attention.HEAD_COUNT: 0,
        keys.Attention.LAYERNORM_EPS: pytest.approx(1e-5),
        keys.Attention.DECAY_LORA_RANK: SMALL.decay_rank,
        keys.Attention.ICLR_LORA_RANK: SMALL.iclr_rank,
        keys.Attention.VALUE_RESIDUAL_MIX_LORA_RANK: SMALL.value_rank,
        keys.Attention.GATE_LORA_RANK: SMALL.gate_rank,
        keys.WKV.HEAD_SIZE: SMALL.head_size,
    }
    expected = {key.format(arch="rwkv7"): value for key, value in expected.items()}
    assert {key: metadata[key] for key in expected} == expected
    assert next(key for key in metadata if not key.startswith("GGUF")) == "general.architecture"


def test_the_vocabulary_is_padded_to_the_model(tmp_path: Path) -> None:
    _, metadata = convert(tmp_path)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert metadata["tokenizer.ggml.model"] == "rwkv"
    assert len(tokens) == len(set(tokens)) == SMALL.vocab_size
    assert tokens[0] == "<s>"
    assert tokens[1:12] == [*(f"\\x{byte:02x}" for byte in range(9)), "\\t", "\\n"]
    assert tokens[257:261] == ["\\n\\n", "\\'\"\\\\", "[PAD259]", "[PAD260]"]
    kinds = metadata["tokenizer.ggml.token_type"]
    assert kinds == [3] + [1] * 258 + [5] * (SMALL.vocab_size - 259)
    assert metadata["tokenizer.ggml.bos_token_id"] == metadata["tokenizer.ggml.eos_token_id"] == 0
    assert WorldTokenizer.from_gguf(tokens).encode("a\n\n'\"\\") == VOCABULARY.encode("a\n\n'\"\\")


def test_only_the_world_vocabulary_has_an_end_of_turn(tmp_path: Path) -> None:
    _, metadata = convert(tmp_path)
    assert "tokenizer.ggml.eot_token_id" not in metadata
    world = ModelConfig(1, 32, 32, 65536, 32, 4, 4, 4, 4)
    path = tmp_path / "world.gguf"
    convert_to_gguf(random_checkpoint(world), WorldTokenizer.world(), path, name="World")
    metadata = dict(open_checkpoint(path).metadata)
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert metadata["tokenizer.ggml.eot_token_id"] == 261
    assert tokens[261] == "\\n\\n"
    assert len(tokens) == 65536
    assert tokens[65530] == "[PAD65530]"
    assert (kinds[0], kinds[1], kinds[65529], kinds[65530]) == (3, 1, 1, 5)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    small = ModelConfig(1, 32, 32, 258, 32, 4, 4, 4, 4)
    with pytest.raises(TokenizerError, match="has 259 tokens, the model 258"):
        convert_to_gguf(random_checkpoint(small), VOCABULARY, tmp_path / "a.gguf", name="a")
    # World's unused ids at the end are no tokens: 0 and the 65529 tokens fit.
    exact = ModelConfig(1, 32, 32, 65530, 32, 4, 4, 4, 4)
    convert_to_gguf(random_checkpoint(exact), WorldTokenizer.world(), tmp_path / "b.gguf", name="b")
    assert len(open_checkpoint(tmp_path / "b.gguf").metadata["tokenizer.ggml.tokens"]) == 65530
    assert os.listdir(tmp_path) == ["b.gguf"]


class JsonTokenizer:
    """The little that conversion asks of a tokenizer made from a `tokenizer.json`."""

    vocab_size = 4
    eos_token_ids = frozenset((0,))

    def __init__(self, json_text: str) -> None:
        self.json_text = json_text

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def token_bytes(self, token_id: int) -> bytes:
        return b""


def tokenizer_json(pre_tokenizer: str) -> str:
    added = [
        {"id": 0, "content": "<|endoftext|>", "special": True},
        {"id": 3, "content": "  ", "special": False},
    ]
    model = {"type": "BPE", "vocab": {"a": 1, "b": 2, "ab": 4}, "merges": [["a", "b"]]}
    return json.dumps(
        {"model": model, "added_tokens": added, "pre_tokenizer": {"type": pre_tokenizer}}
    )


def test_a_byte_level_tokenizer_json_is_kept_and_translated(tmp_path: Path) -> None:
    small = ModelConfig(1, 32, 32, 6, 32, 4, 4, 4, 4)
    text = tokenizer_json("ByteLevel")
    path = tmp_path / "a.gguf"
    convert_to_gguf(random_checkpoint(small), JsonTokenizer(text), path, name="a")
    metadata = open_checkpoint(path).metadata
    assert metadata["tokenizer.huggingface.json"] == text
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.tokens"] == ["<|endoftext|>", "a", "b", "  ", "ab", "[PAD5]"]
    assert metadata["tokenizer.ggml.token_type"] == [3, 1, 1, 4, 1, 5]
    assert metadata["tokenizer.ggml.merges"] == ["a b"]
    assert metadata["tokenizer.ggml.eos_token_id"] == 0
    assert "tokenizer.ggml.eot_token_id" not in metadata


def test_another_tokenizer_json_is_kept_whole(tmp_path: Path) -> None:
    small = ModelConfig(1, 32, 32, 6, 32, 4, 4, 4, 4)
    text = tokenizer_json("Metaspace")
    path = tmp_path / "a.gguf"
    convert_to_gguf(random_checkpoint(small), JsonTokenizer(text), path, name="a")
    metadata = open_checkpoint(path).metadata
    assert metadata["tokenizer.huggingface.json"] == text
    assert metadata["tokenizer.ggml.model"] == "none"
    assert metadata["rwkv7.vocab_size"] == 6


def test_the_chat_template_renders_the_authors_format(tmp_path: Path) -> None:
    _, metadata = convert(tmp_path)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    template = Environment().from_string(metadata["tokenizer.chat_template"])
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "System: Be kind.\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: Bye\n\nAssistant:"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_without_quantization(dtype: torch.dtype, tmp_path: Path) -> None:
    original = random_checkpoint(dtype=dtype)
    reader, metadata = convert(tmp_path, original)
    copy = open_checkpoint(tmp_path / "a.gguf")
    assert read_config(copy).n_layer == SMALL.n_layer
    assert copy.tensors.keys() == original.tensors.keys()
    for name in original.tensors:
        assert torch.equal(copy.read(name).float(), original.read(name).float()), name
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    plain = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    for name, kind in kinds.items():
        is_matrix = name.rpartition(".")[0].rpartition(".")[2] in MATRICES
        assert kind == (plain if is_matrix else "F32"), name
    names = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
    assert metadata["general.file_type"] == gguf.LlamaFileType[names[plain]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_q8_0_equals_the_gguf_package(dtype: torch.dtype, tmp_path: Path) -> None:
    original = random_checkpoint(dtype=dtype)
    reader, metadata = convert(tmp_path, original, quantize="q8_0")
    assert metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    canonical = {
        "token_embd.weight": "emb.weight",
        "blk.1.time_mix_output.weight": "blocks.1.att.output.weight",
        "blk.0.channel_mix_value.weight": "blocks.0.ffn.value.weight",
    }
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == expected_type(tensor.name, "Q8_0"), tensor.name
        if tensor.name in canonical:
            weights = original.read(canonical[tensor.name]).float().numpy()
            expected = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
            np.testing.assert_array_equal(tensor.data, expected)


def test_q8_0_is_within_half_a_step(tmp_path: Path) -> None:
    original = random_checkpoint()
    convert(tmp_path, original, quantize="q8_0")
    copy = open_checkpoint(tmp_path / "a.gguf")
    for name, info in original.tensors.items():
        before, after = original.read(name), copy.read(name)
        if copy.tensors[name].type_name != "Q8_0":
            is_half = copy.tensors[name].type_name == "F16"
            assert torch.equal(before.half() if is_half else before, after), name
            continue
        assert copy.tensors[name].nbytes * 32 == before.numel() * 34
        blocks = before.view(-1, 32)
        step = blocks.abs().amax(1, keepdim=True) / 127
        error = (after.view(-1, 32) - blocks).abs()
        assert (error <= step * (0.5 + 127 * 2**-11)).all(), name
        assert after.shape == info.shape


def test_q8_0_of_q8_0_changes_nothing(tmp_path: Path) -> None:
    convert(tmp_path, quantize="q8_0")
    first = open_checkpoint(tmp_path / "a.gguf")
    convert_to_gguf(first, VOCABULARY, tmp_path / "b.gguf", name="Small", quantize="q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("quantize", "outer", "time_mix", "channel_mix", "file_type"),
    [
        ("q8_0", "Q8_0", "Q8_0", "Q8_0", "MOSTLY_Q8_0"),
        ("q6_k", "Q6_K", "Q6_K", "Q6_K", "MOSTLY_Q6_K"),
        ("q5_1", "Q5_1", "Q5_1", "Q5_1", "MOSTLY_Q5_1"),
        ("Q5_K_M", "Q6_K", "Q5_K", "Q5_K", "MOSTLY_Q5_K_M"),
        ("q5_0", "Q5_0", "Q5_0", "Q5_0", "MOSTLY_Q5_0"),
        ("q4_K_M", "Q6_K", "Q5_K", "Q4_K", "MOSTLY_Q4_K_M"),
        ("q4_0", "Q4_0", "Q4_0", "Q4_0", "MOSTLY_Q4_0"),
    ],
)
def test_every_recipe(
    quantize: str, outer: str, time_mix: str, channel_mix: str, file_type: str, tmp_path: Path
) -> None:
    original = random_checkpoint(WIDE, dtype=torch.bfloat16)
    reader, metadata = convert(tmp_path, original, quantize=quantize)
    assert metadata["general.file_type"] == gguf.LlamaFileType[file_type]
    for tensor in reader.tensors:
        stem = tensor.name.rpartition(".")[0].rpartition(".")[2]
        kind = outer if stem in ("token_embd", "output") else time_mix
        kind = channel_mix if stem.startswith("channel_mix") else kind
        assert tensor.tensor_type.name == expected_type(tensor.name, kind), tensor.name
    copy = open_checkpoint(tmp_path / "a.gguf")
    assert copy.tensors.keys() == original.tensors.keys()
    for name in original.tensors:
        kind = copy.tensors[name].type_name
        before, after = original.read(name).float(), copy.read(name).float()
        error = float((after - before).pow(2).mean().sqrt() / before.pow(2).mean().sqrt())
        assert error <= LARGEST_ERRORS[kind], (name, kind)
        if "_K" in kind:  # the bytes, too, are those of the encoder
            stored = next(each for each in reader.tensors if each.name == GGUF.stored_name(name))
            packed = quantize_blocks(kind, before.numpy().reshape(-1))
            np.testing.assert_array_equal(np.asarray(stored.data).reshape(-1), packed)


@pytest.mark.parametrize(
    ("quantize", "fallback", "head"),
    [
        ("q4_k_m", "Q5_0", "Q8_0"),
        ("q5_k_m", "Q5_1", "Q8_0"),
        ("q6_k", "Q8_0", "Q8_0"),
        ("q5_1", "Q5_1", "Q5_1"),
    ],
)
def test_rows_that_do_not_fill_blocks_of_256(
    quantize: str, fallback: str, head: str, tmp_path: Path
) -> None:
    reader, _ = convert(tmp_path, random_checkpoint(SMALL), quantize=quantize)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.channel_mix_key.weight"] == fallback
    assert kinds["blk.1.channel_mix_value.weight"] == fallback
    assert kinds["output.weight"] == kinds["token_embd.weight"] == head


def test_rows_that_fill_no_block_become_f16(tmp_path: Path) -> None:
    narrow = random_checkpoint(ModelConfig(2, 48, 16, 300, 64, 4, 4, 4, 4))
    narrow.weights["head.weight"][7, 7] = 1e5  # beyond float16
    reader, _ = convert(tmp_path, narrow, quantize="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.channel_mix_value.weight"] == "Q8_0"
    assert kinds["blk.0.channel_mix_key.weight"] == "F16"
    assert kinds["output.weight"] == "F32"


@pytest.mark.parametrize("bad", [7e4, -7e4, torch.inf, torch.nan])
def test_low_rank_pairs_beyond_float16_stay_f32(bad: float, tmp_path: Path) -> None:
    original = random_checkpoint()
    original.weights["blocks.1.att.w2"][2, 2] = bad
    reader, _ = convert(tmp_path, original, quantize="q4_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.1.time_mix_w2.weight"] == "F32"
    assert kinds["blk.1.time_mix_w1.weight"] == kinds["blk.0.time_mix_w2.weight"] == "F16"
    copy = open_checkpoint(tmp_path / "a.gguf").read("blocks.1.att.w2")
    assert torch.equal(copy.nan_to_num(1), original.read("blocks.1.att.w2").nan_to_num(1))


def test_a_quantized_file_can_be_quantized_again(tmp_path: Path) -> None:
    original = random_checkpoint(WIDE)
    convert(tmp_path, original, quantize="q8_0")
    first = open_checkpoint(tmp_path / "a.gguf")
    convert_to_gguf(first, VOCABULARY, tmp_path / "b.gguf", name="Small", quantize="q4_k_m")
    again = MemoryCheckpoint({name: first.read(name).float() for name in first.tensors})
    convert_to_gguf(again, VOCABULARY, tmp_path / "c.gguf", name="Small", quantize="q4_k_m")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0", "Q5_1"])
def test_rwkv_cpp_files_are_quantized(type_name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_rwkv_cpp(path, random_tensors(WIDE), type_name=type_name)
    with closing(open_checkpoint(path)) as source:
        weights = {name: source.read(name).float() for name in source.tensors}
        convert_to_gguf(source, VOCABULARY, tmp_path / "b.gguf", name="a", quantize="q5_k_m")
    in_memory = MemoryCheckpoint(weights)
    convert_to_gguf(in_memory, VOCABULARY, tmp_path / "c.gguf", name="a", quantize="q5_k_m")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


def test_tensors_drawn_when_they_are_read_make_the_same_file(tmp_path: Path) -> None:
    convert(tmp_path, random_checkpoint(seed=3), quantize="q4_0")
    expected = (tmp_path / "a.gguf").read_bytes()
    convert(tmp_path, RandomCheckpoint(SMALL, seed=3), quantize="q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == expected


def test_an_unknown_recipe_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        convert(tmp_path, quantize="q3_k_s")
    assert str(caught.value) == (
        "unknown quantization 'q3_k_s'; the known ones are "
        "q8_0, q6_k, q5_1, q5_k_m, q5_0, q4_k_m, q4_0"
    )
    assert os.listdir(tmp_path) == []


def test_threads_do_not_change_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_threads = threading.active_count()
    # Many pieces, each a row, and results that come late.
    monkeypatch.setattr("rwkv_core.checkpoint.convert._PIECE_VALUES", 1)
    convert(tmp_path, random_checkpoint(), quantize="q5_0")
    many = (tmp_path / "a.gguf").read_bytes()
    monkeypatch.undo()
    monkeypatch.setattr("rwkv_core.checkpoint.convert._num_processors", lambda: 1)
    convert(tmp_path, random_checkpoint(), quantize="q5_0")
    assert (tmp_path / "a.gguf").read_bytes() == many
    assert threading.active_count() == num_threads


def test_a_model_of_one_block(tmp_path: Path) -> None:
    single = ModelConfig(1, 32, 32, 300, 32, 4, 8, 0, 4)
    original = random_checkpoint(single)
    convert(tmp_path, original)
    copy = open_checkpoint(tmp_path / "a.gguf")
    assert {name: copy.tensors[name].shape for name in copy.tensors} == {
        name: original.tensors[name].shape for name in original.tensors
    }


def test_metadata_of_a_gguf_source_is_kept_and_extra_metadata_wins(tmp_path: Path) -> None:
    extra = {
        "general.license": "apache-2.0",
        "general.tags": ["a", "b"],
        "rwkv7.context_length": 4096,
        "tokenizer.chat_template": "mine",
    }
    convert(tmp_path, extra_metadata=extra)
    source = open_checkpoint(tmp_path / "a.gguf")
    path = tmp_path / "b.gguf"
    convert_to_gguf(
        source, VOCABULARY, path, name="Copy", extra_metadata={"general.license": "mit"}
    )
    metadata = open_checkpoint(path).metadata
    assert {key: metadata[key] for key in extra} == {**extra, "general.license": "mit"}
    assert metadata["general.name"] == "Copy"


class CountingCheckpoint(MemoryCheckpoint):
    """Knows how many of the tensors that it handed out are still in use."""

    alive = 0
    most_alive = 0

    def read(self, name: str) -> Tensor:
        value = super().read(name)
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(value, self._gone)
        return value

    def _gone(self) -> None:
        self.alive -= 1


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    checkpoint = CountingCheckpoint(random_checkpoint().weights)
    convert(tmp_path, checkpoint, quantize="q8_0")
    assert (checkpoint.alive, checkpoint.most_alive) == (0, 1)


def test_progress_ends_at_the_bytes_of_all_tensors(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    reader, _ = convert(tmp_path, progress=lambda done, total: calls.append((done, total)))
    total = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [(torch.nan, "holds NaN or infinity"), (1e30, "holds values up to 1e.30; Q4_K stores at most")],
)
def test_weights_that_cannot_be_quantized_are_named(
    bad: float, problem: str, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(WIDE)
    checkpoint.weights["blocks.1.ffn.key.weight"][3, 3] = bad
    name = r"the tensor 'blocks\.1\.ffn\.key\.weight' "
    with pytest.raises(CheckpointError, match=name + problem) as caught:
        convert(tmp_path, checkpoint, quantize="q4_k_m")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_an_incomplete_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    weights = dict(random_checkpoint().weights)
    del weights["blocks.1.att.w2"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor blocks\.1\.att\.w2"):
        convert(tmp_path, MemoryCheckpoint(weights))
    assert os.listdir(tmp_path) == []
