"""Decoding many prompts at once gives what each gives alone."""

from __future__ import annotations

import pytest
import torch

from rwkv_core.demo.greedy import Completion, complete_all
from rwkv_core.formulas import Weights
from rwkv_core.model import Model
from rwkv_core.tokenizer import WorldTokenizer
from rwkv_core.torch_executor import TorchExecutor
from tests.tools.random_checkpoint import TINY, random_tensors


@pytest.fixture(scope="module")
def model() -> Model:
    weights = Weights.load(TINY, random_tensors(TINY).__getitem__)
    vocabulary = [None, *(bytes((value,)) for value in range(256))]
    return Model(TINY, TorchExecutor(TINY, weights), WorldTokenizer(vocabulary))


def alone(model: Model, prompt: list[int], max_new_tokens: int) -> Completion:
    generated: list[int] = []
    logits, state = model.forward(prompt)
    while len(generated) < max_new_tokens:
        token = int(logits.argmax())
        if token in model.tokenizer.eos_token_ids:
            return Completion(tuple(generated), is_ended=True)
        generated.append(token)
        logits, state = model.forward([token], state)
    return Completion(tuple(generated), is_ended=False)


def test_a_batch_of_uneven_prompts_gives_what_each_gives_alone(model: Model) -> None:
    random = torch.Generator().manual_seed(3)
    lengths = [5, 1, 40, 7, 7, 19, 33] * 11  # more than one batch
    prompts = [torch.randint(1, 257, (n,), generator=random).tolist() for n in lengths]
    together = complete_all(model, prompts, 12)
    for prompt, completion in list(zip(prompts, together, strict=True))[::9]:
        assert completion == alone(model, prompt, 12)


def test_rows_end_at_the_end_token(model: Model) -> None:
    """A head that prefers token 0 after some prompts ends some rows early; others go on."""
    weights = Weights.load(TINY, random_tensors(TINY).__getitem__)
    weights.head[0] *= 6  # a long vector is the likeliest whenever its product is positive
    eager = Model(TINY, TorchExecutor(TINY, weights), model.tokenizer)
    prompts = [[token, token + 1] for token in range(1, 40)]
    completions = complete_all(eager, prompts, 10)
    assert completions == [alone(eager, prompt, 10) for prompt in prompts]
    assert {each.is_ended for each in completions} >= {True}
    assert len({len(each.token_ids) for each in completions}) > 1
