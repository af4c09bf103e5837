"""Which tensor of a quantized file gets which block type: the recipes of `anser create --quantize`.

They carry the names and numbers of llama.cpp's file types. Vectors are always F32. The low-rank
pairs, which are small and shape the recurrence, are F16: in F32 they would be up to a quarter of
what a 0.1B model reads for a token.

The mixes (q4_k_m, q5_k_m) spend bits where a byte buys most. llama.cpp's rules for them look for
tensors that RWKV does not have (attn_v, ffn_down), so that there only the head gets more bits. On
the demo model the KL divergence from the unquantized model was measured with one kind of matrix at
a time in Q4_K. Per weight, embedding and head cost most (in proportion 7 and 6), then receptance,
value and output of the time mix (4 each), its key (2.4), and the channel mix (key 2.4, value 1.6).
So embedding and head are Q6_K (the embedding's bytes cost no time: a token reads one row), and in
q4_k_m the time mix, a third of a layer, is Q5_K. That is 5.15 bits a weight at the sizes of 1.5B,
and a divergence of 0.0049 nats; with Q6_K for value and output alone, which takes as much, 0.0062;
with llama.cpp's rule 4.7 bits and 0.0096.
"""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.errors import OptionError


@dataclass(frozen=True)
class Recipe:
    """One way to quantize a model. `file_type` is its number in general.file_type (llama_ftype)."""

    name: str
    file_type: int
    matrix_type: str
    outer_type: str | None = None  # of embedding and head, if it is another
    time_mix_type: str | None = None  # of the projections of the time mix, if it is another

    def type_of(self, leaf: str, row_length: int) -> str:
        """The type of a big matrix with such rows: `leaf` is the part of its canonical name after
        "blocks.N.", or the whole name outside the blocks."""
        if leaf in ("emb.weight", "head.weight"):
            wanted = self.outer_type
        else:
            wanted = self.time_mix_type if leaf.startswith("att.") else None
        return fitting_type(wanted or self.matrix_type, row_length)


def fitting_type(type_name: str, row_length: int) -> str:
    """`type_name`, or what llama.cpp takes instead for rows that do not fill its blocks."""
    for candidate in (type_name, _FALLBACKS.get(type_name, "F16")):
        if row_length % LAYOUTS[candidate].values_per_block == 0:
            return candidate
    return "F16"


_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

# From the largest to the smallest.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("q8_0", 7, "Q8_0"),
        Recipe("q6_k", 18, "Q6_K"),
        Recipe("q5_1", 9, "Q5_1"),
        Recipe("q5_k_m", 17, "Q5_K", outer_type="Q6_K"),
        Recipe("q5_0", 8, "Q5_0"),
        Recipe("q4_k_m", 15, "Q4_K", outer_type="Q6_K", time_mix_type="Q5_K"),
        Recipe("q4_0", 2, "Q4_0"),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, in any case. Raises OptionError, which lists the known ones."""
    recipe = RECIPES.get(name.lower())
    if recipe is None:
        known = ", ".join(RECIPES)
        raise OptionError(f"unknown quantization {name!r}; the known ones are {known}")
    return recipe
