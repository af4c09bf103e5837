"""Model names and durations, as Ollama and Go read them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.store.names import InvalidNameError, ModelName
from server.wire.durations import FOREVER_NS, DurationError, keep_alive_ns, parse_duration
from server.wire.go_text import go_value, human_number, rfc3339

_SECOND = 10**9


@pytest.mark.parametrize(
    ("text", "full", "shortest"),
    [
        ("rwkv7-demo", "registry.ollama.ai/library/rwkv7-demo:latest", "rwkv7-demo:latest"),
        ("Demo:Q8_0", "registry.ollama.ai/library/Demo:Q8_0", "Demo:Q8_0"),
        ("library/x", "registry.ollama.ai/library/x:latest", "x:latest"),
        ("user/rwkv-7-g1:2.9b", "registry.ollama.ai/user/rwkv-7-g1:2.9b", "user/rwkv-7-g1:2.9b"),
        ("hf.co/user/repo.x:Q4", "hf.co/user/repo.x:Q4", "hf.co/user/repo.x:Q4"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest", "localhost:5000/a/b:latest"),
        ("https://hf.co/a/b", "hf.co/a/b:latest", "hf.co/a/b:latest"),
    ],
)
def test_names(text: str, full: str, shortest: str) -> None:
    name = ModelName.parse(text)
    assert (str(name), name.shortest) == (full, shortest)
    assert ModelName.parse(full) == name


@pytest.mark.parametrize(
    "text",
    ["", ":", "x:", ":x", "/x", "a//b", "../x", "x/..", "..", "a/../b", "a b", "x:..", "a/b/c/d",
     "x\0", "x\ny", "x/", "\u00e9", "a" * 81, "x:a/b:c:d", "a.b/c"],
)  # fmt: skip
def test_names_that_no_model_can_have(text: str) -> None:
    with pytest.raises(InvalidNameError, match="invalid model name"):
        ModelName.parse(text)


@settings(deadline=None, max_examples=50)
@given(st.text(st.sampled_from("aB0._-/:\\~ "), max_size=20))
def test_no_name_leads_out_of_its_folder(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except InvalidNameError:
        return
    for part in (name.host, name.namespace, name.model, name.tag):
        assert part not in ("", ".", "..")
        assert not set(part) & set("/\\\0")


def test_names_are_compared_without_regard_to_case() -> None:
    assert ModelName.parse("A/b:C").key == ModelName.parse("a/B:c").key


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("5m", 300 * _SECOND), ("1h30m", 5400 * _SECOND), ("-1s", -_SECOND), ("300ms", 3 * 10**8),
        ("1.5h", 5400 * _SECOND), (".5s", _SECOND // 2), ("0", 0), ("+2us", 2000),
        ("1\u00b5s", 1000), ("2540400h10m10s", (2540400 * 3600 + 610) * _SECOND),
    ],
)  # fmt: skip
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "-", ".s", "3", "1d", "s", "9999999h", "9" * 5000 + "s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(DurationError, match="time: "):
        parse_duration(text)


def test_keep_alive_values() -> None:
    assert keep_alive_ns(1.5) == 1_500_000_000
    assert keep_alive_ns("300ms") == 300_000_000
    assert keep_alive_ns(0) == keep_alive_ns("0s") == 0
    assert keep_alive_ns(-1) == keep_alive_ns("-1s") == keep_alive_ns(1e300) == FOREVER_NS


def test_times_and_numbers_in_go_style() -> None:
    assert rfc3339(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert rfc3339(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"
    sizes = [191_034_624, 2_947_735_040, 5_800_000, 7 * 10**9, 12_345]
    assert [human_number(size) for size in sizes] == ["191.03M", "2.9B", "5.80M", "7B", "12K"]
    shown = [go_value(value) for value in (0.8, 1.0, 40, 4096, 1 << 20, 1e-5, -0.25, True, 'a"\n')]
    assert shown == [
        "0.8",
        "1",
        "40",
        "4096",
        "1.048576e+06",
        "1e-05",
        "-0.25",
        "true",
        '"a\\"\\n"',
    ]
