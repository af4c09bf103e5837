"""Fingerprints of what the kernels compute, to compare two machines by: one line of JSON for each
instruction set of this one.

    python -m tests.tools.kernel_digest > here.jsonl

Sets with a fused multiply-add (all but "portable" on x86-64) have to give the same bits everywhere.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from rwkv_core import kernels
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.kernels.interface import Native
from rwkv_core.loading import load_model
from rwkv_core.model import Model

NUM_ROWS, NUM_COLUMNS = 192, 768
LENGTHS = (1, 2, 15, 70)
PROMPTS = (
    "User: Hello, who are you?\n\nAssistant:",
    "User: My name is Ada and I live in Oslo.\n\nAssistant: Hello Ada!\n\nUser: What is my name?"
    "\n\nAssistant:",
    f"User: {'The kettle is on the stove, and the tea is in the cupboard. ' * 12}\n\nAssistant:",
)
NUM_NEW_TOKENS = 24


def product_digests() -> dict[str, str]:
    """By type and layout: of products with rows of every length in LENGTHS."""
    random = np.random.default_rng(7)
    rows = torch.from_numpy(random.standard_normal((max(LENGTHS), NUM_COLUMNS), np.float32))
    rows[:, 64:96] = 0.0
    digests = {}
    for name, layout in LAYOUTS.items():
        if not layout.is_quantized:
            continue
        # Any bytes, but scales below 2 and so finite: they are among the first, or the last.
        num_blocks = NUM_ROWS * NUM_COLUMNS // layout.values_per_block
        size = (num_blocks, layout.num_bytes(layout.values_per_block))
        raw = random.integers(0, 256, size, np.uint8)
        raw[:, [1, 3, -1]] &= 0xBF
        for by_columns in (False, True):
            matrix = kernels.pack(
                name, raw.reshape(-1), NUM_ROWS, NUM_COLUMNS, by_columns=by_columns, slices=2
            )
            total = hashlib.sha256()
            for length in LENGTHS:
                total.update(kernels.matmul(matrix, rows[:length]).numpy().tobytes())
            digests[f"{name} by {'columns' if by_columns else 'rows'}"] = total.hexdigest()[:16]
    return digests


def reply(model: Model, prompt: str) -> tuple[str, str]:
    """The greedy text, and the fingerprint of all logits on the way."""
    total = hashlib.sha256()
    generated: list[int] = []
    logits, state = model.forward(model.tokenizer.encode(prompt))
    for _ in range(NUM_NEW_TOKENS):
        total.update(logits.numpy().tobytes())
        generated.append(int(logits.argmax()))
        logits, state = model.forward(generated[-1:], state)
    return model.tokenizer.decode(generated), total.hexdigest()[:16]


def main() -> None:
    native: Native | None = kernels.native()
    if native is None:
        raise SystemExit("the kernels are not built")
    for isa in native.supported_isas():
        native.set_isa(isa)
        model = load_model(EMBEDDED)
        replies = [reply(model, prompt) for prompt in PROMPTS]
        line = {"isa": isa, "products": product_digests(), "replies": replies}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
