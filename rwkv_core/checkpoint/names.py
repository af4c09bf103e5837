"""The names of RWKV-7's tensors in every file format: the one home of all translations.

Canonical are the names of the authors' `.pth` files, with every vector as [D], the low-rank pairs
as `w1` [D, R] and `w2` [R, D] (row vectors times matrix), projections as [out, in] and `r_k` as
[H, N].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# The time mix's six lerps, in the order in which files that fuse them stack them: [6, ..., D].
LERPS = ("att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g")

LOW_RANK = tuple(f"att.{letter}{part}" for letter in "wavg" for part in "12")

# Value residual: layer 0 defines v_first and has none. Files may carry placeholders there.
VALUE_RESIDUAL = ("att.v0", "att.v1", "att.v2")

_NORMS = ("ln1", "ln2", "att.ln_x")
_PROJECTIONS = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")
_VECTORS = (*LERPS, "att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "ffn.x_k")

# Every tensor of a block, as the part of its canonical name after "blocks.N.".
BLOCK_LEAVES: tuple[str, ...] = (
    *(f"{norm}.{part}" for norm in _NORMS for part in ("weight", "bias")),
    *_VECTORS,
    *LOW_RANK,
    "att.r_k",
    *(f"{projection}.weight" for projection in _PROJECTIONS),
)

# Every tensor outside the blocks, and ln0: the embedding's norm, but named under block 0.
OUTER_NAMES: tuple[str, ...] = (
    "emb.weight",
    "blocks.0.ln0.weight",
    "blocks.0.ln0.bias",
    "ln_out.weight",
    "ln_out.bias",
    "head.weight",
)

_MATRIX_NAMES = frozenset(
    ("emb.weight", "head.weight", "att.r_k", *LOW_RANK, *(f"{p}.weight" for p in _PROJECTIONS))
)


def block_leaf(name: str) -> tuple[int, str] | None:
    """(3, "att.w1") of "blocks.3.att.w1"; None for a name outside the blocks."""
    return _split_block("blocks.", name)


def is_unused(name: str) -> bool:
    """Whether a canonical name is layer 0's v0, v1 or v2: placeholders that no reader passes on."""
    block = block_leaf(name)
    return block is not None and block[0] == 0 and block[1] in VALUE_RESIDUAL


def is_low_rank(name: str) -> bool:
    """Whether a canonical tensor is half of a low-rank pair."""
    block = block_leaf(name)
    return block is not None and block[1] in LOW_RANK


def num_dims(name: str) -> int:
    """Dimensions of a canonical RWKV-7 tensor: 2 for a matrix and r_k, 1 for everything else."""
    block = block_leaf(name)
    return 2 if (block[1] if block else name) in _MATRIX_NAMES else 1


@dataclass(frozen=True)
class Source:
    """Where a canonical tensor lies in a file, and what must be done to it after reading."""

    stored_name: str
    is_transposed: bool = False
    fused_row: int | None = None  # its row in a fused tensor [6, ..., D], in the order of LERPS


@dataclass(frozen=True)
class Naming:
    """The names of one file format. Tables map canonical to stored names; absent ones are equal."""

    block_prefix: str  # what stands before the layer number
    outer: Mapping[str, str]  # whole names
    leaves: Mapping[str, str]  # the part after "<block_prefix>N."
    fused_lerps: str | None = None  # the leaf of the tensor [6, ..., D] with all of LERPS
    is_low_rank_transposed: bool = False  # w1 is [R, D] and w2 [D, R] in the file

    def stored_name(self, canonical: str) -> str:
        """The name of a canonical tensor in the file; the fused tensor's, if it is in there."""
        block = block_leaf(canonical)
        if canonical in OUTER_NAMES or block is None:
            return self.outer.get(canonical, canonical)
        layer, leaf = block
        if leaf in LERPS and leaf not in self.leaves and self.fused_lerps is not None:
            stored_leaf = self.fused_lerps
        else:
            stored_leaf = self.leaves.get(leaf, leaf)
        return f"{self.block_prefix}{layer}.{stored_leaf}"

    def sources(self, stored_names: Iterable[str]) -> dict[str, Source]:
        """Canonical name -> where to find it, for all tensors of a file.

        Names that this naming does not know keep their own name, so that errors can show them.
        Layer 0's v0, v1, v2 are left out.
        """
        outer = {self.outer.get(name, name): name for name in OUTER_NAMES}
        leaves = {self.leaves.get(leaf, leaf): leaf for leaf in BLOCK_LEAVES}
        found: dict[str, Source] = {}
        for stored in stored_names:
            block = _split_block(self.block_prefix, stored)
            if stored in outer:
                found[outer[stored]] = Source(stored)
            elif block is None:
                found.setdefault(stored, Source(stored))
            elif block[1] == self.fused_lerps:
                for row, lerp in enumerate(LERPS):
                    found[f"blocks.{block[0]}.{lerp}"] = Source(stored, fused_row=row)
            elif block[1] in leaves:
                leaf = leaves[block[1]]
                flip = self.is_low_rank_transposed and leaf in LOW_RANK
                found[f"blocks.{block[0]}.{leaf}"] = Source(stored, is_transposed=flip)
            else:
                found.setdefault(stored, Source(stored))
        return {name: source for name, source in found.items() if not is_unused(name)}


def _split_block(prefix: str, name: str) -> tuple[int, str] | None:
    if not name.startswith(prefix):
        return None
    number, dot, leaf = name[len(prefix) :].partition(".")
    # A layer number has one spelling and few digits: "00" and a kilobyte of nines are other names.
    if not dot or not number.isascii() or not number.isdigit() or len(number) > 6:
        return None
    return (int(number), leaf) if str(int(number)) == number else None


def _norm(canonical: str, stored: str) -> dict[str, str]:
    return {f"{canonical}.{part}": f"{stored}.{part}" for part in ("weight", "bias")}


# The authors' `.pth` files and Ai00's `.st` files.
AUTHORS = Naming(block_prefix="blocks.", outer={}, leaves={})

# rwkv.cpp: as the authors, but the lerps fused and the low-rank pairs transposed.
RWKV_CPP = Naming(
    block_prefix="blocks.",
    outer={},
    leaves={},
    fused_lerps="att.x_rwkvag",
    is_low_rank_transposed=True,
)

# Hugging Face checkpoints of flash-linear-attention: a low-rank pair is two torch.nn.Linear, the
# second with the bias w0, a0 or v0. Its first checkpoints had the six lerps fused as `x_x`.
HUGGING_FACE = Naming(
    block_prefix="model.layers.",
    outer={
        "emb.weight": "model.embeddings.weight",
        **_norm("blocks.0.ln0", "model.layers.0.pre_norm"),
        **_norm("ln_out", "model.norm"),
        "head.weight": "lm_head.weight",
    },
    leaves={
        **_norm("ln1", "attn_norm"),
        **_norm("ln2", "ffn_norm"),
        **_norm("att.ln_x", "attn.g_norm"),
        **{f"att.{part}": f"attn.{part}" for part in ("k_k", "k_a", "r_k")},
        **{lerp: lerp.replace("att.", "attn.") for lerp in LERPS},
        **{f"att.{letter}1": f"attn.{letter}_lora.lora.0.weight" for letter in "wavg"},
        **{f"att.{letter}2": f"attn.{letter}_lora.lora.2.weight" for letter in "wavg"},
        **{f"att.{letter}0": f"attn.{letter}_lora.lora.2.bias" for letter in "wav"},
        "att.receptance.weight": "attn.r_proj.weight",
        "att.key.weight": "attn.k_proj.weight",
        "att.value.weight": "attn.v_proj.weight",
        "att.output.weight": "attn.o_proj.weight",
    },
    fused_lerps="attn.x_x",
    is_low_rank_transposed=True,
)

# llama.cpp's architecture "rwkv7"; r_k is stored flat, [D].
GGUF = Naming(
    block_prefix="blk.",
    outer={
        "emb.weight": "token_embd.weight",
        **_norm("blocks.0.ln0", "token_embd_norm"),
        **_norm("ln_out", "output_norm"),
        "head.weight": "output.weight",
    },
    leaves={
        **_norm("ln1", "attn_norm"),
        **_norm("ln2", "attn_norm_2"),
        **_norm("att.ln_x", "time_mix_ln"),
        **{leaf: leaf.replace("att.", "time_mix_") + ".weight" for leaf in LOW_RANK},
        **{
            f"att.{part}": f"time_mix_{part}.weight"
            for part in ("w0", "a0", "v0", "k_k", "k_a", "r_k")
        },
        **{
            f"att.{part}.weight": f"time_mix_{part}.weight"
            for part in ("receptance", "key", "value", "output")
        },
        "ffn.x_k": "channel_mix_lerp_k.weight",
        "ffn.key.weight": "channel_mix_key.weight",
        "ffn.value.weight": "channel_mix_value.weight",
    },
    fused_lerps="time_mix_lerp_fused.weight",
    is_low_rank_transposed=True,
)
