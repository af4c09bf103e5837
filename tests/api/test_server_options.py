"""Options: types, order of precedence, what becomes of them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rwkv_core.errors import OptionError
from rwkv_core.sampler import SamplingOptions
from server.replies.options import read_options
from server.wire.errors import ApiError


def test_ollamas_defaults() -> None:
    options = read_options({}, {})
    assert options.sampling == SamplingOptions(
        temperature=0.8, top_k=40, top_p=0.9, min_p=0.0, typical_p=1.0, repeat_last_n=64,
        repeat_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, seed=-1,
    )  # fmt: skip
    assert options.stops == ()
    assert options.max_new_tokens(10, 4096) is None


def test_the_request_wins_over_the_model() -> None:
    model = {"temperature": 0.1, "top_k": 5, "stop": ["a"], "num_predict": 9}
    options = read_options(model, {"temperature": 1, "stop": ["b", ""], "seed": None})
    assert (options.sampling.temperature, options.sampling.top_k) == (1.0, 5)
    assert options.stops == ("b",)
    assert options.max_new_tokens(10, 4096) == 9


def test_numbers_are_read_as_go_reads_them() -> None:
    options = read_options({}, {"top_k": 7.9, "temperature": 1, "num_ctx": 512.0})
    assert (options.sampling.top_k, options.sampling.temperature, options.num_ctx) == (7, 1.0, 512)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("temperature", "hot", "of type float32"),
        ("temperature", True, "of type float32"),
        ("top_k", "40", "of type integer"),
        ("seed", [1], "of type integer"),
        ("num_predict", False, "of type integer"),
        ("use_mmap", 1, "of type boolean"),
        ("stop", "x", "of type array"),
        ("stop", ["x", 1], "of an array of strings"),
        ("num_ctx", {}, "of type integer"),
    ],
)
def test_a_wrong_type_is_named_in_ollamas_words(name: str, value: Any, kind: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_options({}, {name: value})
    assert (caught.value.status, str(caught.value)) == (400, f'option "{name}" must be {kind}')


def test_an_unknown_option_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_options({}, {"mirostat": 2}) == read_options({}, {})
    assert "mirostat" in caplog.text


@pytest.mark.parametrize(
    ("num_predict", "num_ctx", "limit"),
    [
        (-1, None, None),
        (0, None, None),
        (5, None, 5),
        (-2, None, 90),
        (-2, 64, 54),
        (-2, 4, 1),
        (-2, -5, 90),
    ],
)
def test_num_predict(num_predict: int, num_ctx: int | None, limit: int | None) -> None:
    options = read_options({}, {"num_predict": num_predict, "num_ctx": num_ctx})
    assert options.max_new_tokens(10, context_length=100) == limit


def test_draft_num_predict() -> None:
    assert read_options({}, {}).draft_num_predict is None  # the model's default
    assert read_options({"draft_num_predict": 3}, {}).draft_num_predict == 3
    assert read_options({"draft_num_predict": 3}, {"draft_num_predict": 0}).draft_num_predict == 0
    with pytest.raises(OptionError, match="option draft_num_predict must be at least 0, not -1"):
        read_options({}, {"draft_num_predict": -1})


def test_every_option_of_ollamas_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """Those that say how to run a llama.cpp change nothing here; RWKV's own is beside them."""
    sampling: dict[str, Any] = {
        "seed": 1, "temperature": 0.5, "top_k": 3, "top_p": 0.4, "min_p": 0.1, "typical_p": 0.7,
        "repeat_last_n": 33, "repeat_penalty": 1.1, "presence_penalty": 0.5,
        "frequency_penalty": 0.4, "penalty_decay": 0.99,
    }  # fmt: skip
    others = {
        "num_keep": 4, "num_predict": 7, "stop": ["x"], "num_ctx": 128, "num_batch": 512,
        "num_gpu": 1, "main_gpu": 0, "use_mmap": True, "num_thread": 2, "draft_num_predict": 4,
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        options = read_options({}, {**sampling, **others})
    assert caplog.text == ""
    assert options.sampling == SamplingOptions(**sampling)
    assert (options.num_predict, options.stops, options.num_ctx) == (7, ("x",), 128)
