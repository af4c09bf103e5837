"""Divergence by hand, the texts it is measured on, and the demo model against its own float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_core.bench.options import BenchError, QualityOptions, Runtime
from rwkv_core.bench.quality import QualityTask, Scores, kl_divergence, writes
from rwkv_core.bench.runs import measure_quality
from rwkv_core.bench.texts import DIALOGUES_SEED, NUM_EXCERPTS, held_out_text
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.demo.greedy import Completion, complete_all
from rwkv_core.demo.train import IGNORED, Recipe
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from rwkv_core.tokenizer import WorldTokenizer
from tests.tools.server_models import write_endless_gguf


def logits_of(probabilities: Sequence[Sequence[float]]) -> Tensor:
    """Logits of these distributions; a constant more for each changes nothing."""
    logits = torch.tensor(probabilities).log()
    return logits + torch.arange(len(logits)).unsqueeze(1)


def test_divergence_is_as_calculated_by_hand() -> None:
    reference = logits_of([[0.5, 0.5, 1e-30], [0.8, 0.1, 0.1]])
    other = logits_of([[0.25, 0.75, 1e-30], [0.8, 0.1, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(reference, other).tolist() == pytest.approx([expected, 0], abs=1e-7)
    assert kl_divergence(other, reference)[0] != pytest.approx(expected, abs=1e-3)


def test_tiny_divergences_are_not_lost_in_rounding() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 65_536)
    noise = 1e-3 * torch.randn(4, 65_536)
    # To the second order: half the variance of the noise.
    assert kl_divergence(logits, logits + noise).tolist() == pytest.approx([5e-7] * 4, rel=0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float) -> None:
    good, bad = torch.zeros(1, 4), torch.tensor([[0.0, value, 0.0, 0.0]])
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(BenchError, match="not finite"):
            kl_divergence(*pair)


def test_scores_are_means_over_what_they_are_about() -> None:
    reference = logits_of([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
    logits = logits_of([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
    labels = torch.tensor([0, IGNORED, 1])
    scores = Scores()
    for row in range(3):  # in parts as good as in one
        part = slice(row, row + 1)
        scores.add(reference[part], logits[part], labels[part])
    divergence = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert (scores.num_positions, scores.num_predicted) == (3, 2)
    assert scores.mean_kl == pytest.approx(divergence / 3, rel=1e-5)
    assert scores.max_kl == pytest.approx(divergence, rel=1e-5)
    assert scores.argmax_agreement == pytest.approx(2 / 3)
    assert scores.perplexity == pytest.approx(1 / math.sqrt(0.25 * 0.1), rel=1e-5)
    assert scores.reference_perplexity == pytest.approx(1 / math.sqrt(0.5 * 0.1), rel=1e-5)


@pytest.fixture(scope="module")
def reference() -> Model:
    return load_model(EMBEDDED, dtype=torch.float32)


def test_the_demo_model_reads_dialogues_that_it_never_saw(reference: Model) -> None:
    options = QualityOptions(num_dialogues=5, num_prompts=9)
    text = held_out_text(reference.tokenizer, options)
    assert DIALOGUES_SEED not in {stage.seed for stage in Recipe().stages} | {Recipe().seed}
    assert text.name == "dialogues"
    assert len(text.documents) == 5
    assert len(text.prompts) == 9
    for document in text.documents:
        assert len(document.token_ids) == len(document.labels)
        assert "User:" in reference.tokenizer.decode(document.token_ids)


def test_other_models_read_a_built_in_text() -> None:
    world = WorldTokenizer.world()
    text = held_out_text(world, QualityOptions())
    (document,) = text.documents
    assert 500 < len(document.token_ids) < 1_500
    assert document.labels == [*document.token_ids[1:], IGNORED]
    assert len(text.prompts) == NUM_EXCERPTS
    assert list(text.prompts[0]) == document.token_ids[: len(text.prompts[0])]


def test_a_text_of_the_users_own(reference: Model, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Grüße, 世界! How are you?")
    text = held_out_text(reference.tokenizer, QualityOptions(text=str(path)))
    assert reference.tokenizer.decode(text.documents[0].token_ids) == path.read_text()
    for content, problem in ((b"", "too short"), (b"x", "too short"), (b"\xff\xfe", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(BenchError, match=problem) as caught:
            held_out_text(reference.tokenizer, QualityOptions(text=str(path)))
        assert str(caught.value).startswith(f"--text {path}: ")
    for missing in (str(tmp_path), str(tmp_path / "none"), "a\0b"):
        with pytest.raises(BenchError, match="cannot be read"):
            held_out_text(reference.tokenizer, QualityOptions(text=missing))


def test_greedy_texts_are_compared_to_their_end(reference: Model) -> None:
    prompt = reference.tokenizer.encode("User: Hello!\n\nAssistant:")
    (completion,) = complete_all(reference, [prompt], 100)
    assert completion.is_ended
    first, *rest = completion.token_ids
    assert writes(reference, prompt, completion)
    assert writes(reference, prompt, Completion((first,), is_ended=False))
    assert not writes(reference, prompt, Completion((first,), is_ended=True))
    assert not writes(reference, prompt, Completion((first + 1, *rest), is_ended=True))


class Silent:
    def show(self, text: str) -> None:
        assert text

    def warn(self, text: str) -> None:
        assert text


def test_the_served_demo_model_is_true_to_its_weights() -> None:
    options = QualityOptions(num_dialogues=10, num_prompts=20)
    result = measure_quality(
        "demo", str(EMBEDDED), options=options, runtime=Runtime(num_threads=1), listener=Silent()
    )
    quality = result.quality
    assert result.reference == str(EMBEDDED)
    assert quality.num_positions > quality.num_predicted > 200
    assert 0 <= quality.mean_kl <= 1e-3
    assert quality.mean_kl <= quality.max_kl
    assert quality.argmax_agreement > 0.99
    assert quality.num_equal_texts >= 0.95 * quality.num_prompts
    # What the replies of these dialogues hold is mostly settled by what comes before.
    assert 1 < quality.perplexity < 2
    assert quality.perplexity == pytest.approx(quality.reference_perplexity, rel=0.01)


def test_another_vocabulary_is_no_reference(tmp_path: Path, reference: Model) -> None:
    other = tmp_path / "other.gguf"
    write_endless_gguf(other)
    for path, options in (
        (EMBEDDED, QualityOptions(reference=str(other))),
        (other, QualityOptions(reference=str(EMBEDDED))),
    ):
        with pytest.raises(BenchError, match="has another vocabulary"):
            QualityTask(str(path), options, lambda _: None).measure()
