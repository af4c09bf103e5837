"""Decides from names and shapes whether a checkpoint is an RWKV-7 model, and of what sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise

from rwkv_core.checkpoint.base import Checkpoint
from rwkv_core.checkpoint.metadata_keys import LAYER_NORM_EPS_KEY
from rwkv_core.checkpoint.names import BLOCK_LEAVES, OUTER_NAMES, block_leaf, is_unused
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError, quoted

# What gives another RWKV away in its tensors' names. The first line that fits counts.
_OTHER_MODELS = tuple(
    (what, frozenset(marks.split()))
    for what, marks in (
        ("is an RWKV-6 model", "time_maa_x"),
        ("is an RWKV-6 model", "time_mix_decay_w1"),
        ("is an RWKV-5 model", "time_faaaa"),
        ("is an RWKV-5 model", "time_first ln_x"),
        ("is an RWKV-4 model", "time_first"),
        ("is an RWKV-8 model", "ffn.enn"),
        ("is an RWKV-7b model (v7b, with an attention beside the state)", "qkv"),
        ("is an RWKV-7b model (v7b, with an attention beside the state)", "att.q"),
        ("is an RWKV-7b model (v7b, with an attention beside the state)", "att.qq"),
        ("is an RWKV-7a model (v7a, with token embeddings in the channel mix)", "ffn.s_emb"),
        ("is an RWKV-7a model (v7a, with token embeddings in the channel mix)", "ffn.s0"),
    )
)


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model's sizes, once all its tensors, and no others, have the shapes that go with them.

    Raises CheckpointError otherwise, which names the model if it is another RWKV.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    other = name_other_model(tensors)
    if other is not None:
        raise CheckpointError(path, f"{other}; Anser runs RWKV-7 models")
    layers = {block[0] for block in map(block_leaf, tensors) if block is not None}
    missing = next((name for name in required_names(len(layers)) if name not in tensors), None)
    if missing is not None:
        raise CheckpointError(path, f"is no complete RWKV-7 model: it lacks the tensor {missing}")
    config = _config(checkpoint, len(layers))
    expected = tensor_shapes(config)
    for name, info in tensors.items():
        if name not in expected:
            problem = f"is no plain RWKV-7 model: it has the unknown tensor {quoted(name)}"
            raise CheckpointError(path, problem)
        if info.shape != expected[name]:
            problem = f"tensor {name} has shape {list(info.shape)}, expected {list(expected[name])}"
            raise CheckpointError(path, problem)
    return config


def required_names(n_layer: int) -> Iterator[str]:
    """Canonical names of all tensors of a model with that many layers."""
    yield from OUTER_NAMES
    for layer in range(n_layer):
        names = (f"blocks.{layer}.{leaf}" for leaf in BLOCK_LEAVES)
        yield from (name for name in names if not is_unused(name))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of all tensors of a model of these sizes."""
    matrices = _matrix_shapes(config)

    def shape(name: str) -> tuple[int, ...]:
        block = block_leaf(name)
        return matrices.get(block[1] if block else name, (config.n_embd,))

    return {name: shape(name) for name in required_names(config.n_layer)}


def name_other_model(names: Collection[str]) -> str | None:
    """What the tensors are when they are an RWKV's that Anser cannot run: "is an RWKV-6 model"."""
    leaves = {name.partition("blocks.")[2].partition(".")[2] or name for name in names}
    if leaves == {"att.time_state"}:
        return "holds a tuned initial state, not a model: name it in ADAPTER, and its model in FROM"
    marks: set[str] = (
        set()
    )  # "att", "ln_x", "weight", "att.ln_x" and "ln_x.weight" of "att.ln_x.weight"
    for leaf in leaves:
        parts = leaf.split(".")
        marks.update(parts, map(".".join, pairwise(parts)))
    return next((what for what, needed in _OTHER_MODELS if needed <= marks), None)


def _config(checkpoint: Checkpoint, n_layer: int) -> ModelConfig:
    path = checkpoint.path

    def matrix(name: str) -> tuple[int, int]:
        shape = checkpoint.tensors[name].shape
        if len(shape) != 2 or min(shape) < 1:
            raise CheckpointError(path, f"tensor {name} has shape {list(shape)}, expected a matrix")
        return shape[0], shape[1]

    vocab_size, n_embd = matrix("emb.weight")
    _, head_size = matrix("blocks.0.att.r_k")
    if n_embd % head_size:
        raise CheckpointError(path, f"its head size {head_size} does not divide its width {n_embd}")
    eps = checkpoint.metadata.get(LAYER_NORM_EPS_KEY, 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(path, f"its {LAYER_NORM_EPS_KEY} is no number between 0 and 1")
    return ModelConfig(
        n_layer=n_layer,
        n_embd=n_embd,
        head_size=head_size,
        vocab_size=vocab_size,
        n_ffn=matrix("blocks.0.ffn.key.weight")[0],
        decay_rank=matrix("blocks.0.att.w1")[1],
        iclr_rank=matrix("blocks.0.att.a1")[1],
        value_rank=matrix("blocks.1.att.v1")[1] if n_layer > 1 else 0,
        gate_rank=matrix("blocks.0.att.g1")[1],
        layer_norm_eps=eps,
    )


def _matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """By the part of the name after "blocks.N."; everything else is a vector [D]."""
    width = config.n_embd
    ranks = {
        "w": config.decay_rank,
        "a": config.iclr_rank,
        "v": config.value_rank,
        "g": config.gate_rank,
    }
    return {
        "emb.weight": (config.vocab_size, width),
        "head.weight": (config.vocab_size, width),
        **{f"att.{letter}1": (width, rank) for letter, rank in ranks.items()},
        **{f"att.{letter}2": (rank, width) for letter, rank in ranks.items()},
        "att.r_k": (config.n_head, config.head_size),
        **{
            f"att.{part}.weight": (width, width)
            for part in ("receptance", "key", "value", "output")
        },
        "ffn.key.weight": (config.n_ffn, width),
        "ffn.value.weight": (width, config.n_ffn),
    }
