"""What is computed from measurements, the tables, and the peer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkv_core.bench.options import BenchError, Runtime, SpeedOptions
from rwkv_core.bench.peer import Peer
from rwkv_core.bench.results import (
    Finished,
    Loaded,
    LongPoint,
    PeerRepetition,
    Quality,
    QualityResult,
    Repetition,
    SpeedResult,
    Spread,
)
from rwkv_core.bench.tables import quality_notes, quality_table, speed_notes, speed_table

OPTIONS = SpeedOptions(
    num_prompt_tokens=100,
    num_decode_tokens=2,
    num_repetitions=3,
    batch_size=8,
    num_long_tokens=5_000,
)
LOADED = Loaded(
    load_s=0.5,
    first_token_s=0.6,
    memory_bytes=300_000_000,
    type_name="Q8_0",
    num_parameters=1_000_000,
    file_bytes=12_000_000,
    decode_weight_bytes=10_000_000,
    num_threads=2,
    isa="avx2",
    num_layers=12,
    num_skipping_layers=5,
)
RESULT = SpeedResult(
    label="tiny",
    path="tiny.gguf",
    processor="A Processor",
    runtime=Runtime(2, "avx2"),
    options=OPTIONS,
    loaded=LOADED,
    repetitions=[
        Repetition(1.0, [0.1, 0.1], [0.2, 0.2]),
        Repetition(0.5, [0.05, 0.05], [0.1, 0.1]),
        Repetition(2.0, [0.1, 0.3], [0.4, 0.4]),
    ],
    long=[
        LongPoint(100, [[0.1, 0.1]] * 3, 300_000_000),
        LongPoint(5_000, [[0.1, 0.1]] * 3, 301_000_000),
    ],
    finished=Finished(
        peak_memory_bytes=400_000_000, zero_channel_share=0.5, read_bytes_per_s=160_000_000.0
    ),
    peer="/somewhere/llama-bench",
    peer_repetitions=[PeerRepetition(2.0, 0.4)] * 3,
)
QUALITY = QualityResult(
    label="tiny",
    path="tiny.gguf",
    reference="tiny.gguf",
    quality=Quality(
        text="dialogues",
        type_name="Q8_0",
        isa="avx2",
        num_positions=1_000,
        num_predicted=500,
        perplexity=1.25,
        reference_perplexity=1.24,
        mean_kl=2.5e-4,
        max_kl=0.1,
        argmax_agreement=0.999,
        num_prompts=50,
        num_equal_texts=49,
    ),
)


def cells(line: str) -> list[str]:
    assert line.startswith("| ")
    assert line.endswith(" |")
    return [cell.strip() for cell in line[1:-1].split("|")]


def test_rates_are_medians_over_repetitions() -> None:
    assert RESULT.prefill.values == (100.0, 200.0, 50.0)
    assert RESULT.prefill.median == 100.0
    assert RESULT.decode.values == pytest.approx((10.0, 20.0, 5.0))
    assert RESULT.batch is not None
    assert RESULT.batch.values == pytest.approx((40.0, 80.0, 20.0))
    assert RESULT.batch_ratio == pytest.approx(4.0)


def test_json_has_every_number() -> None:
    values = json.loads(json.dumps(RESULT.as_json(), allow_nan=False))
    assert values["model"] == "tiny"
    assert values["prefill_tokens_per_s"] == {
        "median": 100.0,
        "min": 50.0,
        "max": 200.0,
        "values": [100.0, 200.0, 50.0],
    }
    assert values["decode_token_s"] == [[0.1, 0.1], [0.05, 0.05], [0.1, 0.3]]
    assert values["num_threads"] == 2
    assert (values["num_skipping_layers"], values["num_layers"]) == (5, 12)
    assert values["peer"]["prefill_ratio"] == pytest.approx(2.0)
    assert values["peer"]["decode_ratio"] == pytest.approx(2.0)
    assert [point["num_tokens"] for point in values["long"]] == [100, 5_000]
    assert json.loads(json.dumps(QUALITY.as_json(), allow_nan=False))["equal_text_share"] == 0.98


def test_a_speed_table_is_markdown() -> None:
    table = speed_table(OPTIONS, has_peer=True, label_width=20)
    title, rule = table.head()
    row = table.row(RESULT)
    assert len(title) == len(rule) == len(row)
    assert set(rule) == set("|-:")
    assert dict(zip(cells(title), cells(row), strict=True)) == {
        "model": "tiny",
        "type": "Q8_0",
        "file, MB": "12",
        "load, s": "0.50",
        "peak, MB": "400",
        "prefill of 100, tokens/s": "100 (50.0–200)",
        "decode of 2, tokens/s": "10.0 (5.00–20.0)",
        "reads, GB/s": "0.1 of 0.2 (62%)",
        "zero channels": "50.0%",
        "layers that skip them": "5 of 12",
        "8 at once, tokens/s": "40.0 (20.0–80.0)",
        "ratio to 1": "4.00",
        "decode at 100": "10.0 (10.0–10.0)",
        "decode at 5000": "10.0 (10.0–10.0)",
        "memory at 100, MB": "300",
        "memory at 5000, MB": "301",
        "peer's prefill": "50.0 (50.0–50.0)",
        "prefill ratio": "2.00",
        "peer's decode": "5.00 (5.00–5.00)",
        "decode ratio": "2.00",
    }
    assert speed_notes([RESULT]).startswith(
        "`anser bench -p 100 -n 2 -r 3 -t 2 -b 8 --long 5000 --isa avx2 --peer llama-bench` on "
        "A Processor, avx2, threads: 2."
    )


def test_a_quality_table_is_markdown() -> None:
    table = quality_table()
    row = dict(zip(cells(table.head()[0]), cells(table.row(QUALITY)), strict=True))
    assert row["mean KL, nats"] == "2.50e-04"
    assert row["perplexity"] == "1.2500"
    assert row["same next token"] == "99.90%"
    assert row["same greedy text"] == "98% (49 of 50)"
    assert "dialogues, 1000 tokens, 500" in quality_notes([QUALITY], None)


def test_one_repetition_has_no_spread() -> None:
    assert Spread((3.0,)).as_json() == {"median": 3.0, "min": 3.0, "max": 3.0, "values": [3.0]}


@pytest.fixture
def peer_file(tmp_path: Path) -> Path:
    return tmp_path / "llama-bench"


def write_script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


REPORT = json.dumps(
    [
        {"n_prompt": 100, "n_gen": 0, "avg_ns": 2_000_000_000},
        {"n_prompt": 0, "n_gen": 2, "avg_ns": 400_000_000},
    ]
)


def test_a_peer_is_run_with_our_counts(peer_file: Path, tmp_path: Path) -> None:
    write_script(peer_file, f"echo \"$@\" > {tmp_path}/words; echo '{REPORT}'")
    assert Peer(str(peer_file)).run("some file", OPTIONS, 4) == PeerRepetition(2.0, 0.4)
    words = (tmp_path / "words").read_text().strip()
    assert words == "-m some file -p 100 -n 2 -r 1 -t 4 -o json"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("echo first >&2; echo no model >&2; exit 3", "failed with exit code 3: no model"),
        ("exit 1", "it said nothing"),
        ("echo hello", "did not print llama-bench's JSON"),
        ("echo '[]'", "did not print llama-bench's JSON"),
        ("echo '{}'", "did not print llama-bench's JSON"),
        (f"echo '{REPORT.replace('400000000', '0')}'", "took no time"),
    ],
)
def test_a_peer_that_fails_is_one_line(peer_file: Path, body: str, problem: str) -> None:
    write_script(peer_file, body)
    with pytest.raises(BenchError) as caught:
        Peer(str(peer_file)).run("file", OPTIONS, 1)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"--peer {peer_file}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_program_is_no_peer(peer_file: Path) -> None:
    for make in (lambda: None, lambda: peer_file.write_text("text"), peer_file.unlink):
        make()
        with pytest.raises(BenchError, match="is no executable file"):
            Peer(str(peer_file))
    peer_file.write_bytes(b"\x00\x01\x02")
    peer_file.chmod(0o755)
    with pytest.raises(BenchError, match="cannot be run"):
        Peer(str(peer_file)).run("file", OPTIONS, 1)
