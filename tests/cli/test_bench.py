"""`anser bench`: its tables, its JSON, its refusals, and its end."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkv_core.demo.evaluate import EMBEDDED
from tests.tools.anser_command import PATIENCE_S, Anser
from tests.tools.bench_output import assert_refused, cells, children

QUICK = ("-p", "4", "-n", "2", "-r", "1", "-t", "1")


def numbers(value: Any) -> Iterator[float]:
    """All numbers in what JSON gave."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_a_file_and_a_model_of_the_store_in_one_table(bare: Anser) -> None:
    result = bare.run("bench", *QUICK, str(EMBEDDED), "RWKV7-demo")
    assert result.returncode == 0, result.stderr
    title, rule, *rows = result.stdout.partition("\n\n")[0].splitlines()
    assert set(rule) == set("|-:")
    assert [cells(row)[0] for row in rows] == ["rwkv7-demo", "rwkv7-demo"]
    by_title = dict(zip(cells(title), cells(rows[0]), strict=True))
    assert by_title["type"] == "Q8_0"
    assert float(by_title["prefill of 4, tokens/s"]) > 0
    assert float(by_title["decode of 2, tokens/s"]) > 0
    note = result.stdout.partition("\n\n")[2]
    assert note.startswith("`anser bench -p 4 -n 2 -r 1 -t 1` on ")
    assert "\x1b" not in result.stderr


def test_json_of_everything_at_once(bare: Anser) -> None:
    peer = bare.home / "llama-bench"
    report = [{"n_prompt": 4, "n_gen": 0, "avg_ns": 1e9}, {"n_prompt": 0, "n_gen": 2, "avg_ns": 1}]
    peer.write_text(f"#!/bin/sh\necho $0 $@ >> {bare.home}/words\necho '{json.dumps(report)}'\n")
    peer.chmod(0o755)
    words = ("-p", "4", "-n", "2", "-r", "2", "-t", "1", "-b", "3", "--long", "110")
    result = bare.run(
        "bench", "--json", *words, "--isa", "portable", "--peer", "llama-bench", str(EMBEDDED)
    )
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    values = json.loads(line)
    assert values.pop("num_skipping_layers") >= 0
    assert all(math.isfinite(number) and number > 0 for number in numbers(values))
    assert values["num_threads"] == 1
    assert values["file_bytes"] == EMBEDDED.stat().st_size
    assert "avx" not in values["isa"].lower()
    for kind, count in (("decode_token_s", 2), ("batch_step_s", 2)):
        assert [len(each) for each in values[kind]] == [count, count]
    decode = values["decode_tokens_per_s"]
    assert decode["values"] == pytest.approx([2 / sum(each) for each in values["decode_token_s"]])
    assert decode["min"] <= decode["median"] <= decode["max"]
    assert [point["num_tokens"] for point in values["long"]] == [100, 110]
    assert values["peer"]["prefill_tokens_per_s"]["values"] == [4.0, 4.0]
    # Once for each repetition, between ours.
    calls = (bare.home / "words").read_text().splitlines()
    assert calls == [f"{peer} -m {EMBEDDED} -p 4 -n 2 -r 1 -t 1 -o json"] * 2


def test_quality_against_another_file(bare: Anser, endless_file: Path) -> None:
    (bare.home / "text.txt").write_text("What is said in one text is said to all.")
    words = ("--quality", "-t", "1", "--text", "text.txt", "--reference", str(endless_file))
    table = bare.run("bench", *words, str(endless_file))
    assert table.returncode == 0, table.stderr
    title, _, row = table.stdout.partition("\n\n")[0].splitlines()
    by_title = dict(zip(cells(title), cells(row), strict=True))
    assert by_title["model"] == "rwkv7-g1-endless"
    assert float(by_title["mean KL, nats"]) < 1e-3
    result = bare.run("bench", "--json", *words, str(endless_file))
    values = json.loads(result.stdout)
    assert values["reference"] == str(endless_file)
    assert values["num_positions"] == values["num_predicted"] + 1 == 40
    assert values["perplexity"] == pytest.approx(values["reference_perplexity"], rel=1e-2)
    assert 0 < values["num_prompts"] <= 8


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("nobody",), 1, "nobody: there is neither a file of that name nor a model in"),
        (("a b",), 1, "a b: there is neither a file of that name"),
        (("n" * 5_000,), 1, "there is neither a file of that name"),
        (("text.gguf",), 1, "text.gguf: is no .pth, safetensors, GGUF or rwkv.cpp file"),
        (("empty",), 1, "empty: is a folder without a model file"),
        ((), 2, "the following arguments are required: FILE|NAME"),
        (("demo", "-p", "0"), 2, 'argument -p: must be a whole number of at least 1, not "0"'),
        (("demo", "-n", "-1"), 2, 'argument -n: must be a whole number of at least 1, not "-1"'),
        (("demo", "-r", "few"), 2, 'argument -r: must be a whole number of at least 1, not "few"'),
        (("demo", "-t", "1.5"), 2, "argument -t: must be a whole number"),
        (("demo", "-b", "²"), 2, "argument -b: must be a whole number"),
        (("demo", "--isa", "sse"), 2, "argument --isa: invalid choice: 'sse'"),
        (("demo", "--long", "100"), 1, "--long 100: must be more than the 100 tokens"),
        (("text.gguf", "--peer", "none"), 1, "--peer none: is no executable file"),
        (("text.gguf", "--peer", "text.gguf"), 1, "--peer text.gguf: is no executable file"),
        (("demo", "--text", "x"), 1, "--text is only for --quality"),
        (("demo", "--quality", "-p", "5"), 1, "-p measures speed, not --quality"),
        (("text.gguf", "--quality", "--reference", "no"), 1, "no: there is neither a file"),
    ],
)
def test_refusals_are_one_line(
    words: tuple[str, ...],
    code: int,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    Path("text.gguf").write_text("no model at all")
    Path("empty").mkdir()
    assert_refused(("bench", *words), code, problem, capsys)


def test_a_peer_that_fails_names_itself(bare: Anser) -> None:
    peer = bare.home / "peer"
    peer.write_text("#!/bin/sh\necho out of luck >&2\nexit 7\n")
    peer.chmod(0o755)
    result = bare.run("bench", *QUICK, "--peer", str(peer), str(EMBEDDED))
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last == f"Error: --peer {peer}: failed with exit code 7: out of luck"


def test_more_threads_than_processors_is_a_note(bare: Anser) -> None:
    number = str(len(os.sched_getaffinity(0)) + 1)
    words = ("bench", "--json", "-p", "1", "-n", "1", "-r", "1", "-t", number, str(EMBEDDED))
    result = bare.run(*words)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith(f"note: {number} threads on ")
    assert json.loads(result.stdout)["num_threads"] == int(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_its_end_is_the_measuring_processs_end(bare: Anser, number: signal.Signals) -> None:
    process = bare.start("bench", "-t", "1", "--long", "1000000000", str(EMBEDDED))
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (measuring := children(process.pid)):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)  # whatever it is at by then
        process.send_signal(number)
        out, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert process.returncode == expected[number]
    assert out == ""
    assert "Traceback" not in errors
    while any(Path(f"/proc/{pid}").exists() for pid in measuring):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_terminal_shows_what_is_being_done(bare: Anser) -> None:
    with bare.terminal("bench", *QUICK, str(EMBEDDED)) as terminal:
        terminal.expect("rwkv7-demo: loading")
        terminal.expect("rwkv7-demo: decode 1 of 1")
        terminal.expect(r"\| rwkv7-demo \| Q8_0 ")
        assert terminal.wait() == 0
