"""Logits of the authors' own runtime, the `rwkv` package, on the CPU in float32.

It runs in a process of its own: it is switched to RWKV-7 by environment variables at import, and it
changes global settings of PyTorch.
"""

from __future__ import annotations

import importlib
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
class Reading:
    """Tokens for the model at `path` (a `.pth` file), the last `num_single` of them one by one.

    `time_state` is the `.pth` file of a tuned state to begin with.
    """

    path: Path
    tokens: Sequence[int]
    num_single: int
    time_state: Path | None = None


@dataclass(frozen=True)
class OracleLogits:
    """What the package says in its two ways of reading."""

    sequence: Tensor  # [T, V], all tokens at once
    single: Tensor  # [num_single, V], one token at a time


def oracle_logits(readings: Sequence[Reading]) -> list[OracleLogits]:
    """The package's logits for each reading."""
    jobs = [
        (str(r.path.with_suffix("")), list(r.tokens), r.num_single, str(r.time_state or ""))
        for r in readings
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.pt"
        env = {**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__, str(out)],
            input=json.dumps(jobs),
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [OracleLogits(*pair) for pair in torch.load(out, weights_only=True)]


def main(out_path: str) -> None:
    runtime = importlib.import_module("rwkv.model")  # here, because it prints and compiles
    results = []
    for path, tokens, num_single, time_state in json.load(sys.stdin):
        model = runtime.RWKV(model=path, strategy="cpu fp32")
        sequence, _ = model.forward(tokens, _beginning(model, time_state), full_output=True)
        state, single = _beginning(model, time_state), []
        if num_single < len(tokens):
            _, state = model.forward(tokens[:-num_single], state)
        for token in tokens[-num_single:]:
            logits, state = model.forward([token], state)
            single.append(logits)
        results.append((sequence, torch.stack(single)))
    torch.save(results, out_path)


def _beginning(model: Any, time_state: str) -> list[Tensor] | None:
    """The state before the first token: three tensors a layer, the second the WKV state."""
    if not time_state:
        return None
    tuned = torch.load(time_state, weights_only=True)
    state: list[Tensor] = model.generate_zero_state()
    for layer in range(model.args.n_layer):
        # As RWKV Runner does it for RWKV-7; for earlier versions it transposes.
        state[3 * layer + 1] = tuned[f"blocks.{layer}.att.time_state"].float()
    return state


if __name__ == "__main__":
    main(*sys.argv[1:])
