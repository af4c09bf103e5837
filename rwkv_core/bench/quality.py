"""Compares a model as it is served with its reference in float32, inside the measuring process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_core.bench import served
from rwkv_core.bench.options import BenchError, QualityOptions
from rwkv_core.bench.process import Progress
from rwkv_core.bench.results import Quality
from rwkv_core.bench.speed import main_type
from rwkv_core.bench.texts import Document, HeldOutText, held_out_text
from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.demo.greedy import Completion, complete_all
from rwkv_core.demo.train import IGNORED
from rwkv_core.loading import load_model
from rwkv_core.model import Model

# Positions whose logits are held at once: 64 of 65,536 floats are 16 MB.
_CHUNK = 64
# exp() of more is more than a float holds. No usable model comes near.
_MAX_LOSS = 700.0


class QualityTask:
    """Call `measure`."""

    def __init__(self, path: str, options: QualityOptions, progress: Progress) -> None:
        self._path = path
        self._options = options
        self._progress = progress

    @property
    def calls(self) -> Mapping[str, Callable[[], Any]]:
        return {"measure": lambda: asdict(self.measure())}

    def measure(self) -> Quality:
        """Raises BenchError for a text that cannot be read and a reference of another vocabulary.

        Both models are in memory at once.
        """
        self._progress("loading")
        model = load_model(self._path)
        text = held_out_text(model.tokenizer, self._options)
        self._progress("loading the reference in float32")
        reference = load_model(self._options.reference or self._path, dtype=torch.float32)
        _check_vocabularies(model, reference, self._options.reference, text)
        with closing(open_checkpoint(self._path)) as checkpoint:
            type_name = main_type(checkpoint)
        scores = score(reference, model, text, self._progress)
        num_equal = count_equal_texts(reference, model, text, self._progress)
        return Quality(
            text=text.name,
            type_name=type_name,
            isa=served.isa(model),
            num_positions=scores.num_positions,
            num_predicted=scores.num_predicted,
            perplexity=scores.perplexity,
            reference_perplexity=scores.reference_perplexity,
            mean_kl=scores.mean_kl,
            max_kl=scores.max_kl,
            argmax_agreement=scores.argmax_agreement,
            num_prompts=len(text.prompts),
            num_equal_texts=num_equal,
        )


@dataclass
class Scores:
    """Sums over the positions of a text, of logits that a reference and a model give for it."""

    num_positions: int = 0
    num_predicted: int = 0
    _kl: float = field(default=0.0, repr=False)
    max_kl: float = 0.0
    _num_agreed: int = field(default=0, repr=False)
    _loss: float = field(default=0.0, repr=False)
    _reference_loss: float = field(default=0.0, repr=False)

    def add(self, reference: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Takes logits [T, V] of both, and the tokens [T] that are to be predicted or IGNORED."""
        divergence = kl_divergence(reference, logits)
        self.num_positions += len(divergence)
        self._kl += float(divergence.sum())
        self.max_kl = max(self.max_kl, float(divergence.max()))
        self._num_agreed += int((reference.argmax(-1) == logits.argmax(-1)).sum())
        self.num_predicted += int((labels != IGNORED).sum())
        self._loss += _loss(logits, labels)
        self._reference_loss += _loss(reference, labels)

    @property
    def mean_kl(self) -> float:
        return self._kl / self.num_positions

    @property
    def argmax_agreement(self) -> float:
        return self._num_agreed / self.num_positions

    @property
    def perplexity(self) -> float:
        return _perplexity(self._loss, self.num_predicted)

    @property
    def reference_perplexity(self) -> float:
        return _perplexity(self._reference_loss, self.num_predicted)


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits) in nats [T] of the distributions that logits [T, V] stand for.

    In float64: rounding in float32 is as large as what good kernels are off. Raises BenchError on
    logits that are not finite.
    """
    for each in (reference, logits):
        if not bool(each.isfinite().all()):
            raise BenchError("the model gives logits that are not finite; is its file damaged?")
    target = reference.double().log_softmax(-1)
    return (target.exp() * (target - logits.double().log_softmax(-1))).sum(-1)


def score(
    reference: Model, model: Model, text: HeldOutText, progress: Progress = lambda _: None
) -> Scores:
    """Reads the documents with both models side by side, a few positions at a time."""
    scores = Scores()
    num_positions = sum(len(document.token_ids) for document in text.documents)
    for document in text.documents:
        parts = zip(_logits(reference, document), _logits(model, document), strict=True)
        for start, (expected, logits) in zip(count(step=_CHUNK), parts, strict=False):
            labels = torch.tensor(document.labels[start : start + _CHUNK])
            scores.add(expected, logits, labels)
            progress(f"comparing, {scores.num_positions} of {num_positions} tokens")
    return scores


def count_equal_texts(
    reference: Model, model: Model, text: HeldOutText, progress: Progress = lambda _: None
) -> int:
    """How many prompts both continue greedily with exactly the same tokens, and end alike."""
    progress("writing the reference's greedy texts")
    completions = complete_all(reference, text.prompts, text.max_new_tokens)
    num_equal = 0
    for index, (prompt, expected) in enumerate(zip(text.prompts, completions, strict=True)):
        progress(f"comparing greedy texts, {index} of {len(text.prompts)}")
        num_equal += writes(model, prompt, expected)
    return num_equal


def writes(model: Model, prompt: Sequence[int], expected: Completion) -> bool:
    """Whether the model's greedy continuation is `expected`, decoded token by token as served."""
    state = model.new_state()
    logits = model.advance(prompt, state)
    for token in expected.token_ids:
        if int(logits.argmax()) != token:
            return False
        logits = model.advance([token], state)
    return not expected.is_ended or int(logits.argmax()) in model.tokenizer.eos_token_ids


def _logits(model: Model, document: Document) -> Iterator[Tensor]:
    """Logits [up to _CHUNK, V] of all positions, one part after the other."""
    state = model.new_state()
    for start in range(0, len(document.token_ids), _CHUNK):
        chunk = document.token_ids[start : start + _CHUNK]
        yield model.advance(chunk, state, all_logits=True)


def _loss(logits: Tensor, labels: Tensor) -> float:
    """Nats in all for the tokens to be predicted."""
    return float(F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))


def _perplexity(loss: float, num_predicted: int) -> float:
    return math.exp(min(loss / num_predicted, _MAX_LOSS))


def _check_vocabularies(
    model: Model, reference: Model, path: str | None, text: HeldOutText
) -> None:
    is_same = model.config.vocab_size == reference.config.vocab_size and all(
        reference.tokenizer.token_bytes(token) == model.tokenizer.token_bytes(token)
        for document in text.documents
        for token in set(document.token_ids)
    )
    if not is_same:
        raise BenchError(
            f"--reference {path}: has another vocabulary; name an unquantized original"
        )
