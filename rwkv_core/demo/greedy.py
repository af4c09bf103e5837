"""Greedy decoding of many prompts at once: what makes evaluating thousands of dialogues fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rwkv_core.executor import Segment
from rwkv_core.model import Model

BATCH_SIZE = 64


@dataclass(frozen=True)
class Completion:
    """Generated ids without the end token; `is_ended` tells whether the model wrote one."""

    token_ids: tuple[int, ...]
    is_ended: bool


def complete_all(
    model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Completion]:
    """The likeliest continuation of each prompt, step by step, in the order of `prompts`."""
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, Completion] = {}
    for start in range(0, len(by_length), BATCH_SIZE):
        rows = by_length[start : start + BATCH_SIZE]
        found = _complete_batch(model, [prompts[row] for row in rows], max_new_tokens)
        results.update(zip(rows, found, strict=True))
    return [results[index] for index in range(len(prompts))]


def _complete_batch(
    model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Completion]:
    """Reads all prompts at once and then goes on in step; a finished row leaves the batch."""
    texts: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    states = [model.new_state() for _ in prompts]
    active = list(range(len(prompts)))
    tokens = [torch.tensor(prompt) for prompt in prompts]
    while active:
        segments = [Segment(read, states[row]) for read, row in zip(tokens, active, strict=True)]
        likeliest = model.advance_batch(segments).argmax(-1).tolist()
        kept: list[int] = []
        for row, token in zip(active, likeliest, strict=True):
            if token in model.tokenizer.eos_token_ids:
                ended[row] = True
                continue
            texts[row].append(token)
            if len(texts[row]) < max_new_tokens:
                kept.append(row)
        active = kept
        tokens = [torch.tensor(texts[row][-1:]) for row in active]
    return [Completion(tuple(text), is_ended) for text, is_ended in zip(texts, ended, strict=True)]
