"""Trains the demo model from nothing: `python -m rwkv_core.demo.train`.

The data is endless, so there are no epochs: each batch is made of dialogues never seen before. The
network is `rwkv_core.formulas` itself, with its weights as parameters; matrices learn with Muon,
all else with AdamW.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.config import ModelConfig
from rwkv_core.demo.dialogues import (
    KIND_WEIGHTS,
    POLISH_WEIGHTS,
    Dialogue,
    generate,
    training_segments,
)
from rwkv_core.demo.vocabulary import build_tokenizer
from rwkv_core.demo.weights import initial_weight
from rwkv_core.formulas import Weights, forward_hidden, linear
from rwkv_core.state import State
from rwkv_core.tokenizer import Tokenizer

IGNORED = -100  # label of a token that is not the model's to write
LENGTH_STEP = 32  # lengths are padded to multiples of it, so that few shapes occur


@dataclass(frozen=True)
class Stage:
    """A stretch of training with its own dialogues and its own rise and fall of the rates."""

    steps: int
    seed: int  # of the dialogues; 2 is for evaluation
    weights: Mapping[str, float]  # shares of the kinds of dialogues
    peak: float = 1.0  # of the learning rates
    warmup_steps: int = 100


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome. The defaults are what the shipped model was made with."""

    n_layer: int = 4
    n_embd: int = 256
    batch_tokens: int = 3_072
    seed: int = 1  # of the initial weights
    muon_lr: float = 6e-3
    adam_lr: float = 3e-3
    weight_decay: float = 0.01
    stages: tuple[Stage, ...] = (
        Stage(steps=2_800, seed=1, weights=KIND_WEIGHTS),
        Stage(steps=700, seed=3, weights=POLISH_WEIGHTS, peak=0.5),
    )


def demo_config(recipe: Recipe, vocab_size: int) -> ModelConfig:
    return ModelConfig(
        n_layer=recipe.n_layer,
        n_embd=recipe.n_embd,
        head_size=64,
        vocab_size=vocab_size,
        n_ffn=4 * recipe.n_embd,
        decay_rank=32,
        iclr_rank=32,
        value_rank=16,
        gate_rank=64,
    )


@dataclass(frozen=True)
class Example:
    """Token ids of one dialogue, and for each the token that the model should write next."""

    token_ids: list[int]
    labels: list[int]


def encode_example(dialogue: Dialogue, tokenizer: Tokenizer) -> Example:
    """Labels are the tokens of the replies; each reply's last token is followed by the end of text,
    0.
    """
    token_ids: list[int] = []
    labels: list[int] = []
    for segment in training_segments(dialogue):
        ids = tokenizer.encode(segment.text)
        if segment.is_target:
            labels[-1] = ids[0]
            labels += [*ids[1:], 0]
        else:
            labels += [IGNORED] * len(ids)
        token_ids += ids
    return Example(token_ids, labels)


def batches(
    stage: Stage, batch_tokens: int, tokenizer: Tokenizer
) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels [B, T], B T about `batch_tokens`, of dialogues of like length."""
    rng = random.Random(stage.seed)
    dialogues = generate(stage.seed, weights=stage.weights)
    while True:
        pool = [encode_example(each, tokenizer) for each in islice(dialogues, 4_096)]
        pool.sort(key=lambda example: len(example.token_ids))
        cut: list[list[Example]] = []
        while pool:
            length = _padded(len(pool[-1].token_ids))
            count = max(1, batch_tokens // length)
            cut.append(pool[-count:])
            del pool[-count:]
        rng.shuffle(cut)
        yield from map(_stack, cut)


def _padded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def _stack(examples: list[Example]) -> tuple[Tensor, Tensor]:
    length = _padded(max(len(example.token_ids) for example in examples))
    token_ids = torch.zeros(len(examples), length, dtype=torch.long)
    labels = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        token_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        labels[row, : len(example.labels)] = torch.tensor(example.labels)
    return token_ids, labels


def loss_of(weights: Weights, config: ModelConfig, token_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled tokens; logits are computed for those alone."""
    state = State.zeros(config, token_ids.shape[0])
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = forward_hidden(weights, config, token_ids, state)
        wanted = labels != IGNORED
        logits = linear(hidden[wanted], weights.head)
    return F.cross_entropy(logits, labels[wanted])


def learning_rate_factor(step: int, stage: Stage) -> float:
    """Linear warm-up, a plateau, and a linear way down to zero over the second half."""
    warm_up = (step + 1) / stage.warmup_steps
    way_down = 2 * (1 - step / stage.steps)
    return stage.peak * min(1.0, warm_up, way_down)


def make_optimizers(
    parameters: dict[str, Parameter], recipe: Recipe
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the projections inside the layers; AdamW for everything else."""
    muon: list[Parameter] = []
    adam: list[Parameter] = []
    for name, parameter in parameters.items():
        is_projection = name.startswith("blocks.") and name.endswith(
            ("receptance.weight", "key.weight", "value.weight", "output.weight")
        )
        (muon if is_projection else adam).append(parameter)
    return (
        torch.optim.Muon(
            muon,
            lr=recipe.muon_lr,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(adam, lr=recipe.adam_lr, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0),
    )


def train(
    recipe: Recipe, tokenizer: Tokenizer, checkpoint_path: Path, *, first_stage: int = 1
) -> None:
    """Runs the recipe; writes the weights now and then, float32, in the authors' `.pth` naming.

    With `first_stage` above 1 it goes on from the weights in `checkpoint_path`.
    """
    torch.manual_seed(recipe.seed)
    config = demo_config(recipe, tokenizer.vocab_size)
    stored = torch.load(checkpoint_path, weights_only=True) if first_stage > 1 else {}
    parameters: dict[str, Parameter] = {}

    def create(name: str) -> Tensor:
        initial = initial_weight(name, config)
        parameters[name] = Parameter(stored.get(name, initial))
        return parameters[name]

    weights = Weights.load(config, create)
    print(f"{sum(p.numel() for p in parameters.values()):,} parameters", flush=True)
    for number, stage in enumerate(recipe.stages, start=1):
        if number >= first_stage:
            print(f"stage {number} of {len(recipe.stages)}", flush=True)
            data = batches(stage, recipe.batch_tokens, tokenizer)
            for step in train_stage(stage, recipe, weights, config, parameters, data):
                if step % 500 == 0 or step == stage.steps:
                    save_checkpoint(parameters, checkpoint_path)


def train_stage(
    stage: Stage,
    recipe: Recipe,
    weights: Weights,
    config: ModelConfig,
    parameters: dict[str, Parameter],
    data: Iterator[tuple[Tensor, Tensor]],
) -> Iterator[int]:
    """Takes one step after the other, yielding the number of steps taken, and reports on them."""
    optimizers = make_optimizers(parameters, recipe)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    report = _Report(stage.steps)
    for step, (token_ids, labels) in enumerate(islice(data, stage.steps)):
        for optimizer, base_rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = base_rate * learning_rate_factor(step, stage)
        loss = loss_of(weights, config, token_ids, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        report.add(loss.item(), token_ids.numel())
        yield step + 1


class _Report:
    """A line on the progress every 50 steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._started = time.monotonic()
        self._num_steps = 0
        self._num_tokens = 0
        self._losses: list[float] = []

    def add(self, loss: float, num_tokens: int) -> None:
        self._num_steps += 1
        self._num_tokens += num_tokens
        self._losses.append(loss)
        if self._num_steps % 50 and self._num_steps != self._steps:
            return
        seconds = time.monotonic() - self._started
        print(
            f"step {self._num_steps}/{self._steps}  "
            f"loss {sum(self._losses) / len(self._losses):.4f}  "
            f"{self._num_tokens / 1e6:.2f} M tokens  {self._num_tokens / seconds:.0f} tokens/s  "
            f"{seconds / 60:.1f} min",
            flush=True,
        )
        self._losses.clear()


def save_checkpoint(parameters: dict[str, Parameter], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save({name: value.detach().clone() for name, value in parameters.items()}, partial)
    partial.replace(path)


def export(checkpoint_path: Path, tokenizer: Tokenizer, out: Path) -> None:
    """Writes the trained weights as the GGUF that is shipped, matrices in Q8_0."""
    checkpoint = open_checkpoint(checkpoint_path)
    try:
        convert_to_gguf(checkpoint, tokenizer, out, name="rwkv7-demo", quantize="q8_0")
    finally:
        checkpoint.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out", type=Path, default=Path("rwkv7-demo.gguf"), help="the GGUF to write"
    )
    parser.add_argument("--checkpoint", type=Path, help="the .pth to write (default: beside --out)")
    parser.add_argument(
        "--first-stage",
        type=int,
        default=1,
        help="go on from --checkpoint with this stage; one past the last only writes the GGUF",
    )
    arguments = parser.parse_args()
    checkpoint_path = arguments.checkpoint or arguments.out.with_suffix(".pth")
    tokenizer = build_tokenizer()
    train(Recipe(), tokenizer, checkpoint_path, first_stage=arguments.first_stage)
    export(checkpoint_path, tokenizer, arguments.out)
    print(f"wrote {arguments.out} ({arguments.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
