"""`anser bench --tables`: what models cost, beside a peer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwkv_core.bench.machine import ProcessMemory, memory_of
from rwkv_core.demo.evaluate import EMBEDDED
from server.bench.llama_server import llama_server
from server.bench.overview import ModelFacts, OverviewResult, ServerResult, TurnSample
from server.bench.overview_tables import first_token_rows, first_token_table, shown_turns, turn_rows
from server.bench.results import Reply
from server.cli.errors import CommandError
from tests.tools.anser_command import PATIENCE_S, Anser
from tests.tools.bench_output import assert_refused, children, tables
from tests.tools.peer_server import DECODE_MS, NUM_READ, NUM_WRITTEN, PREFILL_MS, write_peer
from tests.tools.running_server import needs_demo

# Enters the peer and waits to be killed.
_OWNER = """\
import sys, time
from pathlib import Path
from server.bench.llama_server import llama_server
path, file = map(Path, sys.argv[1:])
with llama_server(str(path), file, num_threads=1, options={}, folder=path.parent) as peer:
    print(peer.pid, flush=True)
    time.sleep(600)
"""


@needs_demo
def test_a_model_beside_a_peer(bare: Anser) -> None:
    peer, picture = bare.home / "peer", bare.home / "tables.png"
    write_peer(peer)
    words = ("--turns", "3", "-r", "2", "-n", "12", "-t", "1", "--peer", str(peer))
    result = bare.run("bench", "--tables", *words, "--plot", str(picture), str(EMBEDDED))
    assert result.returncode == 0, result.stderr
    turns, memory, firsts = tables(result.stdout)
    assert [row["turn"] for row in turns] == ["1", "3"]
    for row in turns:
        assert 0 < int(row["read, tokens"]) < 60
        assert float(row["decode, tokens/s"]) > 0
        assert float(row["resident, MB"]) > float(row["of it states, MB"]) > 0
        assert int(row["peer's read"]) == NUM_READ
        assert float(row["peer's prefill"]) == NUM_READ / PREFILL_MS * 1000
        # The first token came with the prompt.
        assert float(row["peer's decode"]) == (NUM_WRITTEN - 1) / DECODE_MS * 1000
        ratio = float(row["decode, tokens/s"]) / float(row["peer's decode"])
        assert float(row["decode ratio"]) == pytest.approx(ratio, abs=0.01)
    (model,) = memory
    assert (model["model"], model["parameters"], model["type"]) == ("rwkv7-demo", "4.21M", "Q8_0")
    file_mb, resident_mb, peak_mb = (
        float(model[key]) for key in ("file, MB", "resident, MB", "peak, MB")
    )
    assert file_mb == pytest.approx(EMBEDDED.stat().st_size / 1e6, abs=0.05)
    assert file_mb < resident_mb <= peak_mb
    assert 1 < float(model["peer's resident"]) <= float(model["peer's peak"])
    assert [row["server"] for row in firsts] == ["Anser", "peer"]
    assert all(float(row[f"turn {number}"]) > 0 for row in firsts for number in (1, 2, 3))
    assert "`anser bench --tables --turns 3 -n 12 -r 2 -t 1 --peer peer` on " in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not bare.models.exists()  # nor is anything left behind


def test_how_chats_become_figures() -> None:
    ours = ServerResult("Anser", ProcessMemory(50, 60), [chat(1.0, 2.0), chat(3.0, 6.0)])
    theirs = ServerResult("theirs", ProcessMemory(None, None), [chat(8.0, 8.0)])
    facts = ModelFacts("a", "1B", "Q8_0", file_bytes=10, state_bytes=2, num_threads=1)
    result = OverviewResult(facts, ours, theirs)
    first, last = result.ours.turns
    assert (first.first_token_s, last.first_token_s) == (2.0, 4.0)
    # 20 tokens read in half the time, 10 decoded in twice as much.
    assert last.prefill_rate == pytest.approx((20 / 1 + 20 / 3) / 2)
    assert last.decode_rate == pytest.approx((10 / 4 + 10 / 12) / 2)
    assert (last.resident_bytes, ours.peak_bytes) == (2_000_000, 6_000_001)
    rows = turn_rows(result)
    assert rows[0].decode_ratio == pytest.approx((10 / 2 + 10 / 6) / 2 / (10 / 16))
    shown = json.loads(json.dumps(result.as_json()))
    assert (shown["model"], shown["num_chats"], shown["num_turns"]) == ("a", 2, 2)
    assert shown["anser"]["turns"][1]["time_to_first_token_s"] == 4.0
    assert shown["anser"]["time_to_first_token_s"] == [[1.0, 2.0], [3.0, 6.0]]
    assert shown["peer"]["resident_bytes"] is None
    table = first_token_table([result]).whole(first_token_rows([result]))
    assert [row["turn 2"] for row in tables(table)[0]] == ["4000.0", "8000.0"]


def test_which_turns_are_shown() -> None:
    assert shown_turns(10) == [1, 3, 6, 10]
    assert shown_turns(2) == [1, 2]
    assert shown_turns(100) == [1, 3, 6, 10, 30, 60, 100]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_peer_ends_with_whom_it_is_for(tmp_path: Path, number: signal.Signals) -> None:
    write_peer(tmp_path / "peer")
    words = [sys.executable, "-c", _OWNER, str(tmp_path / "peer"), str(EMBEDDED)]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert children(owner.pid) == [pid]
        owner.send_signal(number)
        owner.communicate(timeout=PATIENCE_S)
    finally:
        owner.kill()
    deadline = time.monotonic() + PATIENCE_S
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert memory_of(pid) == ProcessMemory(None, None)


def test_a_peer_that_is_none_is_named(tmp_path: Path) -> None:
    problem = "--peer /bin/false: ended with exit code 1 (it said nothing); name a llama-server"
    with (
        pytest.raises(CommandError, match=re.escape(problem)),
        llama_server("/bin/false", EMBEDDED, num_threads=1, options={}, folder=tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--tables", "--chat"), "--chat and --tables: measure one after the other"),
        (("--tables", "--think"), "--think is only for --chat and --load"),
        (("--tables", "-p", "5"), "-p measures speed, not --tables"),
        (("--tables", "--turns", "2,3"), "--tables plays chats of one length"),
        (("--tables", "--peer", "no"), "--peer no: is no executable file; name a llama-server"),
        (("--tables", "--plot", "a.bmp"), "--plot a.bmp: must end in .png"),
    ],
)
def test_refusals_are_one_line(
    words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(("bench", *words, str(EMBEDDED)), 1, problem, capsys)


def chat(*first_s: float) -> list[TurnSample]:
    """A turn for each; its memory is as many MB."""
    return [
        TurnSample(
            Reply(
                content="a",
                thinking="",
                num_prompt_tokens=30,
                num_cached_tokens=10,
                num_tokens=11,
                begin_s=0.0,
                first_s=each,
                gaps_s=(),
                prefill_s=each / 2,
                decode_s=each * 2,
            ),
            ProcessMemory(int(each * 1e6), int(each * 1e6) + 1),
            None,
        )
        for each in first_s
    ]
