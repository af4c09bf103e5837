"""What tensors make an RWKV-7 model, and what is said of tensors that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_core.checkpoint.architecture import name_other_model
from tests.tools.random_checkpoint import TINY, random_tensors, write_pth
from tests.tools.refusal import refusal

_V4 = (
    "emb.weight",
    "blocks.0.ln0.weight",
    "blocks.0.ln1.weight",
    "blocks.0.att.time_decay",
    "blocks.0.att.time_first",
    "blocks.0.att.time_mix_k",
    "blocks.0.att.key.weight",
    "blocks.0.ffn.time_mix_k",
    "blocks.0.ffn.receptance.weight",
    "head.weight",
)
_V5_0 = (*_V4, "blocks.0.att.ln_x.weight", "blocks.0.att.ln_x.bias")
_V5_2 = tuple(name.replace("time_first", "time_faaaa") for name in _V5_0)
_V6 = (
    *_V5_2,
    "blocks.0.att.time_maa_x",
    "blocks.0.att.time_maa_w1",
    "blocks.0.att.time_decay_w1",
    "blocks.0.ffn.time_maa_k",
)
_V7 = tuple(random_tensors(TINY))
_V7A = (*_V7, *(f"blocks.0.ffn.{part}" for part in ("s_emb.weight", "s_emb_x.weight", "s0", "s1")))
_V7B = (*_V7A, "blocks.0.qkv.qq.weight", "blocks.0.qkv.k1", "blocks.0.qkv.k_emb.weight")

MODELS = {
    "v4": ("is an RWKV-4 model", _V4),
    "v5": ("is an RWKV-5 model", _V5_0),
    "v5.2": ("is an RWKV-5 model", _V5_2),
    "v6": ("is an RWKV-6 model", _V6),
    "v6 of Hugging Face": ("is an RWKV-6 model", ("rwkv.blocks.0.attention.time_maa_x",)),
    "v5 of Hugging Face": ("is an RWKV-5 model", ("rwkv.blocks.0.attention.time_faaaa",)),
    "v6 of llama.cpp": ("is an RWKV-6 model", ("blk.0.time_mix_decay_w1.weight",)),
    "v7a": ("is an RWKV-7a model", _V7A),
    "v7b": ("is an RWKV-7b model", _V7B),
    "v7b by its queries": ("is an RWKV-7b model", (*_V7, "blocks.0.att.q.weight")),
    "v7b by its other queries": ("is an RWKV-7b model", (*_V7, "blocks.3.att.qq.weight")),
    "v8": ("is an RWKV-8 model", (*_V7, "blocks.0.ffn.enn.weight")),
    "state": ("tuned initial state", ("blocks.0.att.time_state", "blocks.1.att.time_state")),
}


@pytest.mark.parametrize(("what", "names"), MODELS.values(), ids=MODELS)
def test_other_models_are_named(tmp_path: Path, what: str, names: tuple[str, ...]) -> None:
    path = tmp_path / "model.pth"
    write_pth(path, {name: torch.ones(1) for name in names})
    problem = refusal(path)
    assert problem.startswith((what, f"holds a {what}"))
    assert problem.endswith("; Anser runs RWKV-7 models")


def test_models_of_other_families_are_not_taken_for_an_rwkv() -> None:
    llama = {"model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"}
    t5 = {"encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"}
    for names in (llama, t5, set(_V7)):
        assert name_other_model(names) is None


def test_every_tensor_is_needed(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    path = tmp_path / "model.pth"
    for name in ("emb.weight", "blocks.0.ln0.bias", "blocks.0.att.r_k", "blocks.2.ffn.x_k"):
        write_pth(path, {key: value for key, value in tensors.items() if key != name})
        assert refusal(path) == f"is no complete RWKV-7 model: it lacks the tensor {name}"


def _changed(**changes: Tensor) -> dict[str, Tensor]:
    return {**random_tensors(TINY), **changes}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"blocks.1.att.w1": torch.ones(64, 33)},
            "blocks.1.att.w1 has shape [64, 33], expected [64, 32]",
        ),
        ({"blocks.1.att.w1": torch.ones(32, 64)}, "expected [64, 32]"),  # the other way round
        ({"blocks.2.ffn.x_k": torch.ones(65)}, "blocks.2.ffn.x_k has shape"),
        ({"ln_out.bias": torch.ones(2, 64)}, "ln_out.bias has shape [2, 64], expected [64]"),
        (
            {"head.weight": torch.ones(299, 64)},
            "head.weight has shape [299, 64], expected [300, 64]",
        ),
        ({"emb.weight": torch.ones(300)}, "emb.weight has shape [300], expected a matrix"),
        ({"emb.weight": torch.ones(0, 64)}, "emb.weight has shape [0, 64], expected a matrix"),
        (
            {"blocks.0.att.r_k": torch.ones(64)},
            "blocks.0.att.r_k has shape [64], expected a matrix",
        ),
        ({"blocks.0.att.r_k": torch.ones(4, 15)}, "head size 15 does not divide its width 64"),
        ({"blocks.0.att.r_k": torch.ones(3, 16)}, "expected [4, 16]"),
        ({"blocks.0.att.extra": torch.ones(1)}, "the unknown tensor 'blocks.0.att.extra'"),
        ({"blocks.00.att.w0": torch.ones(64)}, "the unknown tensor 'blocks.00.att.w0'"),
        ({"blocks.4.att.w0": torch.ones(64)}, "lacks the tensor blocks.3.ln1.weight"),
        ({"blocks.999999.att.w0": torch.ones(64)}, "lacks the tensor blocks.3.ln1.weight"),
    ],
)
def test_shapes_that_do_not_go_together(
    tmp_path: Path, changes: dict[str, Tensor], problem: str
) -> None:
    path = tmp_path / "model.pth"
    write_pth(path, _changed(**changes), has_3d_vectors=False)
    assert problem in refusal(path)
