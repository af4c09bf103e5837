"""Logits of the authors' own runtime, the `rwkv` package, on the CPU in float32.

It runs in a process of its own: it is switched to RWKV-7 by environment variables at import, and it
changes global settings of PyTorch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class OracleLogits:
    """What the package says after reading the same tokens in its two ways."""

    sequence: Tensor  # [T, V], all tokens at once
    token: Tensor  # [V], after the last token, one token at a time


def oracle_logits(path: Path, tokens: Sequence[int]) -> OracleLogits:
    """The package's logits for the `.pth` file at `path`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.pt"
        env = {**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(path.with_suffix("")), str(out)]
        done = subprocess.run(
            command, input=json.dumps(list(tokens)), env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        sequence, token = torch.load(out, weights_only=True)
    return OracleLogits(sequence, token)


def main(model_path: str, out_path: str) -> None:
    from rwkv.model import RWKV  # noqa: PLC0415  (it reads the environment)

    tokens: list[int] = json.load(sys.stdin)
    model: Any = RWKV(model=model_path, strategy="cpu fp32")
    sequence, _ = model.forward(tokens, None, full_output=True)
    state = None
    for token in tokens:
        logits, state = model.forward([token], state)
    torch.save((sequence, logits), out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
