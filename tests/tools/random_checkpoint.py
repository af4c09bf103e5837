"""Random RWKV-7 checkpoints of any shape, in every format that users have.

The values are drawn so that the model behaves like a trained one: decays from almost none to the
strongest, gates and learning rates away from their ends, states that neither vanish nor explode,
and logits of standard deviation near 1. Names and layouts are spelled out here as the formats' own
converters write them, without the tables of `rwkv_core.checkpoint.names`, which they test.

    python -m tests.tools.random_checkpoint 0.1B model.pth
    python -m tests.tools.random_checkpoint 0.4B folder --format hf --shards 3 --dtype f16
    python -m tests.tools.random_checkpoint 2.9B model.gguf --format gguf --quantize q4_k_m

A GGUF file is written tensor by tensor, in the memory that the largest takes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import save_file
from torch import Tensor

from rwkv_core.checkpoint import TensorInfo
from rwkv_core.checkpoint.architecture import tensor_shapes
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.recipes import RECIPES
from rwkv_core.config import ModelConfig
from rwkv_core.tokenizer import WorldTokenizer

Tensors = dict[str, Tensor]

LERPS = ("att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g")
_LOW_RANK = tuple(f"att.{letter}{part}" for letter in "wavg" for part in "12")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def _released(n_layer: int, n_embd: int, ranks: tuple[int, int, int, int]) -> ModelConfig:
    decay, iclr, value, gate = ranks
    return ModelConfig(
        n_layer=n_layer,
        n_embd=n_embd,
        head_size=64,
        vocab_size=65536,
        n_ffn=4 * n_embd,
        decay_rank=decay,
        iclr_rank=iclr,
        value_rank=value,
        gate_rank=gate,
    )


# The released World models.
PRESETS = {
    "0.1B": _released(12, 768, (64, 64, 32, 128)),
    "0.4B": _released(24, 1024, (64, 64, 32, 128)),
    "1.5B": _released(24, 2048, (96, 96, 64, 256)),
    "2.9B": _released(32, 2560, (96, 96, 64, 320)),
}

# Small, with every size different, so that no two can be confused.
TINY = ModelConfig(
    n_layer=3,
    n_embd=64,
    head_size=16,
    vocab_size=300,
    n_ffn=224,
    decay_rank=32,
    iclr_rank=40,
    value_rank=24,
    gate_rank=48,
)


def random_tensors(
    config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensors:
    """All canonical tensors of a model. Each depends on the seed, its name and the sizes alone."""
    return {
        name: _values(name, shape, config, seed).to(dtype)
        for name, shape in tensor_shapes(config).items()
    }


def make_few_active(tensors: Tensors, layer: int, threshold: float) -> None:
    """Lowers what comes into a layer's relu^2 by about `threshold` of its standard deviations.

    A bias of the layer norm gives all its rows a direction in common, and the key matrix gets that
    much less of it. Few channels are active then, others in every row.
    """
    block = f"blocks.{layer}"
    tensors[f"{block}.ln2.bias"] = torch.ones_like(tensors[f"{block}.ln2.bias"])
    tensors[f"{block}.ffn.x_k"] = torch.zeros_like(tensors[f"{block}.ffn.x_k"])
    key = tensors[f"{block}.ffn.key.weight"].float()
    key -= key.mean(1, keepdim=True) + threshold / key.shape[1]
    tensors[f"{block}.ffn.key.weight"] = key.to(tensors[f"{block}.ffn.key.weight"].dtype)


@dataclass
class RandomCheckpoint:
    """The tensors of `random_tensors` as an open checkpoint, each drawn when it is read."""

    config: ModelConfig
    seed: int = 0
    dtype: torch.dtype = torch.float32
    metadata: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path("random")
    format: str = "pth"

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[self.dtype]
        return {
            name: TensorInfo(name, shape, kind, math.prod(shape) * self.dtype.itemsize)
            for name, shape in tensor_shapes(self.config).items()
        }

    def read(self, name: str) -> Tensor:
        shape = tensor_shapes(self.config)[name]
        return _values(name, shape, self.config, self.seed).to(self.dtype)

    def close(self) -> None:
        pass


def write_pth(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    has_3d_vectors: bool = True,
    has_unused: bool = True,
) -> None:
    """As the authors save: with vectors as [1, 1, D] or [D], and layer 0's v0, v1, v2 or not."""
    torch.save(_as_authors(tensors, has_3d_vectors, has_unused), path)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    has_3d_vectors: bool = True,
    has_unused: bool = True,
) -> None:
    """An `.st` file in the authors' naming, as Ai00's converter makes."""
    save_file(_as_authors(tensors, has_3d_vectors, has_unused), path, metadata={"format": "pt"})


def write_hugging_face(
    folder: Path, tensors: Mapping[str, Tensor], config: ModelConfig, *, shards: int = 1
) -> None:
    """A folder as flash-linear-attention saves it: config.json and safetensors files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_hugging_face_config(config)))
    stored = {
        _hugging_face_name(name): tensor.t().contiguous()
        if _leaf(name) in _LOW_RANK
        else tensor.view(1, 1, -1)
        if _leaf(name) in LERPS
        else tensor
        for name, tensor in tensors.items()
    }
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for index in range(shards):
        file_name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(stored.items())[index::shards])
        save_file(part, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file_name))
    total = sum(tensor.nbytes for tensor in stored.values())
    index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))


def write_rwkv_cpp(path: Path, tensors: Mapping[str, Tensor], *, type_name: str = "F16") -> None:
    """As rwkv.cpp's converter (F32, F16) and then its quantizer (Q4_0 … Q8_0) write it."""
    stored = _as_rwkv_cpp(_as_authors(tensors, has_3d_vectors=True, has_unused=True))
    vocab_size, n_embd = tensors["emb.weight"].shape
    n_layer = sum(name.endswith(".ln1.weight") for name in tensors)
    with path.open("wb") as file:
        sizes = (vocab_size, n_embd, n_layer)
        file.write(struct.pack("<6i", 0x67676D66, 101, *sizes, _RWKV_CPP_TYPES[type_name]))
        for name, tensor in stored.items():
            kind = _rwkv_cpp_type(name, tensor, type_name)
            key, shape = name.encode(), tensor.shape[::-1]
            file.write(struct.pack("<3i", len(shape), len(key), _RWKV_CPP_TYPES[kind]))
            file.write(struct.pack(f"<{len(shape)}i", *shape))
            file.write(key)
            file.write(_packed(tensor.float().numpy(), kind).tobytes())


def _leaf(name: str) -> str:
    """ "att.w1" of "blocks.3.att.w1"; a name outside the blocks as it is."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def _values(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """float32 values; the comments give what they make of the unit-variance input of a layer."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))

    def normal(mean: float, std: float) -> Tensor:
        return torch.empty(shape).normal_(mean, std, generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(shape).uniform_(low, high, generator=generator)

    width, depth = config.n_embd, math.sqrt(2 * config.n_layer)
    inner = 1 / math.sqrt(width)
    rank = 1 / math.sqrt(shape[0])
    draws: dict[str, Callable[[], Tensor]] = {
        "emb.weight": lambda: normal(0, 0.5),
        "head.weight": lambda: normal(0, inner),
        **{lerp: lambda: uniform(0, 1) for lerp in (*LERPS, "ffn.x_k")},
        # log w = -0.607 sigmoid(w0 + …): half-lives from about one token to hundreds.
        "att.w0": lambda: uniform(-6, 1.5),
        "att.a0": lambda: normal(-0.2, 0.8),
        "att.v0": lambda: normal(0.7, 0.5),
        **{f"att.{letter}1": lambda: normal(0, inner) for letter in "wavg"},
        **{f"att.{letter}2": lambda: normal(0, 0.5 * rank) for letter in "wav"},
        "att.g2": lambda: normal(0, 2 * rank),
        "att.k_k": lambda: normal(0.75, 0.15),
        "att.k_a": lambda: normal(1.0, 0.1),
        "att.r_k": lambda: normal(0, 0.2),
        "att.receptance.weight": lambda: normal(0, inner),
        "att.key.weight": lambda: normal(0, inner),
        "att.value.weight": lambda: normal(0, inner),
        # The residual stream grows by about one layer norm's worth over all layers.
        "att.output.weight": lambda: normal(0, inner / depth),
        "ffn.key.weight": lambda: normal(0, inner),
        "ffn.value.weight": lambda: normal(0, 1 / (math.sqrt(config.n_ffn) * depth)),
    }
    draw = draws.get(_leaf(name))
    if draw is not None:
        return draw()
    return normal(0, 0.1) if name.endswith(".bias") else normal(1, 0.1)


def _as_authors(tensors: Mapping[str, Tensor], has_3d_vectors: bool, has_unused: bool) -> Tensors:
    stored = dict(tensors)
    if has_unused and "blocks.1.att.v0" in tensors:
        for part in ("v0", "v1", "v2"):  # numbers that would be noticed if anything used them
            stored[f"blocks.0.att.{part}"] = torch.full_like(tensors[f"blocks.1.att.{part}"], 1e4)
    if has_3d_vectors:  # of parameters; the norms are modules and have vectors
        for name, tensor in stored.items():
            if tensor.ndim == 1 and ".ln" not in name and not name.startswith("ln_out"):
                stored[name] = tensor.view(1, 1, -1)
    return stored


def _hugging_face_name(name: str) -> str:
    """The rules of flash-linear-attention's utils/convert_from_rwkv7.py."""
    if not name.startswith("blocks."):
        outer = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
        module, _, part = name.partition(".")
        return f"{outer[module]}.{part}"
    _, layer, module, *rest = name.split(".")
    modules = {"att": "attn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
    parts = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    if module == "att" and re.fullmatch("[wavg][012]", rest[0]):
        part = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[rest[0][1]]
        rest = [f"{rest[0][0]}_lora.lora.{part}"]
    elif module == "att":
        rest[0] = {**parts, "ln_x": "g_norm"}.get(rest[0], rest[0])
    return ".".join(("model.layers", layer, modules.get(module, module), *rest))


def _hugging_face_config(config: ModelConfig) -> dict[str, object]:
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "head_dim": config.head_size,
        "intermediate_size": config.n_ffn,
        "vocab_size": config.vocab_size,
        "value_dim": [config.n_embd] * config.n_layer,
        "decay_low_rank_dim": config.decay_rank,
        "a_low_rank_dim": config.iclr_rank,
        "v_low_rank_dim": config.value_rank,
        "gate_low_rank_dim": config.gate_rank,
        "norm_eps": config.layer_norm_eps,
        "norm_first": True,
        "tie_word_embeddings": False,
    }


_RWKV_CPP_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 7, "Q5_1": 8, "Q8_0": 9}

# What rwkv.cpp keeps in float32 although it has two dimensions or more.
_RWKV_CPP_F32 = (".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")


def _as_rwkv_cpp(tensors: Tensors) -> Tensors:
    stored = {}
    for name, tensor in tensors.items():
        leaf = _leaf(name)
        if leaf in LERPS:
            if leaf == LERPS[0]:
                prefix = name.removesuffix(leaf)
                fused = [tensors[prefix + lerp].view(1, 1, -1) for lerp in LERPS]
                stored[prefix + "att.x_rwkvag"] = torch.cat(fused)
        else:
            stored[name] = tensor.t().contiguous() if leaf in _LOW_RANK else tensor
    return stored


def _rwkv_cpp_type(name: str, tensor: Tensor, wanted: str) -> str:
    if tensor.ndim == 1 or any(part in name for part in _RWKV_CPP_F32):
        return "F32"
    # The quantizer leaves the embedding and the head alone, and rows that do not fill blocks.
    is_block = wanted not in ("F32", "F16")
    if is_block and (name in ("emb.weight", "head.weight") or tensor.shape[-1] % 32):
        return "F16"
    return wanted


def _packed(values: npt.NDArray[np.float32], type_name: str) -> npt.NDArray[np.generic]:
    """The numbers as ggml stores them; blocks by the `gguf` package."""
    if type_name == "F32":
        return values
    if type_name == "F16":
        return values.astype(np.float16)
    packed: npt.NDArray[np.uint8] = quants.quantize(values, GGMLQuantizationType[type_name])
    return packed


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a random RWKV-7 checkpoint.")
    parser.add_argument("size", choices=[*PRESETS, "tiny"])
    parser.add_argument("path", type=Path)
    formats = ("pth", "st", "hf", "rwkv.cpp", "gguf")
    parser.add_argument("--format", choices=formats, default="pth")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--type", choices=list(_RWKV_CPP_TYPES), default="F16", help="of rwkv.cpp")
    parser.add_argument("--shards", type=int, default=1, help="of hf")
    parser.add_argument("--quantize", choices=list(RECIPES), help="of gguf")
    parser.add_argument("--layers", type=int, help="fewer layers than the model of that size has")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = TINY if args.size == "tiny" else PRESETS[args.size]
    if args.layers is not None:
        config = ModelConfig(**{**vars(config), "n_layer": args.layers})
    if args.quantize and args.format != "gguf":
        parser.error("--quantize needs --format gguf")
    if args.format == "gguf":
        checkpoint = RandomCheckpoint(config, args.seed, DTYPES[args.dtype])
        name = f"random {args.size}"
        convert_to_gguf(
            checkpoint, WorldTokenizer.world(), args.path, name=name, quantize=args.quantize
        )
        return
    tensors = random_tensors(config, args.seed, DTYPES[args.dtype])
    if args.format == "pth":
        write_pth(args.path, tensors)
    elif args.format == "st":
        write_safetensors(args.path, tensors)
    elif args.format == "hf":
        write_hugging_face(args.path, tensors, config, shards=args.shards)
    else:
        write_rwkv_cpp(args.path, tensors, type_name=args.type)


if __name__ == "__main__":
    main()
