"""The embedded model itself: what it promises, on dialogues it was not trained on."""

from __future__ import annotations

import pytest
from gguf import GGUFReader

from rwkv_core.demo.evaluate import EMBEDDED, Report, evaluate
from rwkv_core.demo.small_talk import PARAMETERS_TEXT
from rwkv_core.demo.vocabulary import build_tokenizer
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from rwkv_core.tokenizer import WorldTokenizer


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(EMBEDDED)


@pytest.fixture(scope="module")
def report(demo: Model) -> Report:
    return evaluate(demo, num_dialogues=60, seed=5)


def test_it_can_do_what_the_readme_says(report: Report) -> None:
    # Of 60 dialogues chance takes a few more than of 500, which the command measures.
    margin = 0.05
    for share in report.shares:
        assert share.required is None or share.good >= (share.required - margin) * share.total, (
            share.row()
        )


def test_it_is_small_and_tells_its_size(demo: Model) -> None:
    assert EMBEDDED.stat().st_size <= 8_000_000
    assert f"{demo.num_parameters / 1e6:.1f} million" == PARAMETERS_TEXT


def test_its_file_has_the_vocabulary_that_the_generator_gives(demo: Model) -> None:
    assert isinstance(demo.tokenizer, WorldTokenizer)
    assert demo.tokenizer.to_gguf() == build_tokenizer().to_gguf()


def test_other_tools_read_its_file() -> None:
    reader = GGUFReader(EMBEDDED)
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    assert architecture.contents() == "rwkv7"
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output.weight", "blk.0.time_mix_lerp_fused.weight"} <= names
