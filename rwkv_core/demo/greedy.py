"""Greedy decoding of many prompts at once: what makes evaluating thousands of dialogues fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv_core.model import Model
from rwkv_core.state import State

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
    """Prompts of similar length: all are read up to the shortest one's end, then go on in step.

    A row reads what is left of its prompt and then its own tokens; a finished row leaves the batch.
    """
    shared = min(map(len, prompts))
    texts = [list(prompt) for prompt in prompts]
    ended = [False] * len(prompts)
    active = list(range(len(prompts)))
    logits, state = model.forward_batch(torch.tensor([text[:shared] for text in texts]))
    position = shared  # the number of tokens that every active row has read
    while True:
        likeliest = logits.argmax(-1).tolist()
        kept: list[int] = []  # places in the batch that go on
        for place, row in enumerate(active):
            if position < len(prompts[row]):
                kept.append(place)
            elif likeliest[place] in model.tokenizer.eos_token_ids:
                ended[row] = True
            else:
                texts[row].append(likeliest[place])
                if len(texts[row]) < len(prompts[row]) + max_new_tokens:
                    kept.append(place)
        if not kept:
            break
        if len(kept) < len(active):
            state = _select(state, torch.tensor(kept, device=model.device))
            active = [active[place] for place in kept]
        tokens = torch.tensor([[texts[row][position]] for row in active])
        logits, state = model.forward_batch(tokens, state)
        position += 1
    return [
        Completion(tuple(text[len(prompt) :]), is_ended)
        for text, prompt, is_ended in zip(texts, prompts, ended, strict=True)
    ]


def _select(state: State, rows: Tensor) -> State:
    """The state of some sequences of a batch."""
    return State(
        state.time_shift.index_select(1, rows),
        state.channel_shift.index_select(1, rows),
        state.wkv.index_select(1, rows),
    )
