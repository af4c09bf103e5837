"""`anser bench --chat` and `--load`: chats over HTTP on servers of their own."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rwkv_core.demo.evaluate import EMBEDDED
from server.bench.conversation import Script
from server.bench.results import ChatResult, LoadResult, Memory, Reply, Stream, Turn
from server.bench.tables import load_table, stream_table
from tests.tools.anser_command import PATIENCE_S, Anser
from tests.tools.bench_output import assert_refused, children, exit_code, tables
from tests.tools.native import require_kernels
from tests.tools.running_server import needs_demo
from tests.tools.server_models import write_endless_gguf


@needs_demo
def test_chats_in_tables_and_in_a_picture(bare: Anser) -> None:
    picture = bare.home / "chats.png"
    words = ("--turns", "3", "--pause", "0.2", "-n", "20", "--plot", str(picture))
    result = bare.run("bench", "--chat", *words, str(EMBEDDED))
    assert result.returncode == 0, result.stderr
    *chats, summary = tables(result.stdout)
    assert [len(chat) for chat in chats] == [3, 3]
    assert [row["thinking"] for row in summary] == ["no", "yes"]
    for chat in chats:
        assert chat[0]["reused, tokens"] == "0"
        for row in chat[1:]:
            # The new message, not the chat: that is what the state is for.
            assert 0 < int(row["read, tokens"]) < 60 < int(row["reused, tokens"]) + 40
        assert all(float(row["first token, ms"]) > 0 for row in chat)
        assert all(int(row["written, tokens"]) <= 20 for row in chat)
    assert "`anser bench --chat --turns 3 --pause 0.2 -n 20` on " in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Nothing is left behind, and the user's own models and states are not touched.
    assert {each.name for each in (bare.home / ".anser").iterdir()} == {"logs"}
    assert not bare.models.exists()


@needs_demo
def test_a_chat_as_json(bare: Anser) -> None:
    words = ("--turns", "3", "--think=false", "--json")
    result = bare.run("bench", "--chat", *words, "rwkv7-demo")
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    chat = json.loads(line)
    assert (chat["num_turns"], chat["thinking"], chat["pause_s"]) == (3, False, 0)
    turns = chat["turns"]
    assert [turn["turn"] for turn in turns] == [1, 2, 3]
    assert turns[0]["fresh_time_to_first_token_s"] is None
    for before, turn in pairwise(turns):
        assert turn["tokens_reused"] > before["tokens_reused"]
        # The same message after the system prompt alone: as many tokens, but for a separator.
        assert abs(turn["fresh_tokens_read"] - turn["tokens_read"]) <= 6
    ratios = [
        turn["time_to_first_token_s"] / turn["fresh_time_to_first_token_s"] for turn in turns[1:]
    ]
    assert min(ratios) <= chat["time_to_first_token_ratio"] <= max(ratios)
    assert all(turn["resident_bytes"] > turn["state_bytes"] > 0 for turn in turns)


@needs_demo
def test_chats_at_once_say_what_each_says_alone(bare: Anser) -> None:
    require_kernels()  # without them, texts may depend on the company
    words = ("--load", "3", "--turns", "2", "-n", "24", "--think")
    result = bare.run("bench", *words, "--json", str(EMBEDDED))
    assert result.returncode == 0, result.stderr
    load = json.loads(result.stdout)
    assert load["thinking"]
    assert load["are_texts_equal"]
    assert [chat["equal_texts"] for chat in load["chats"]] == [2, 2, 2]
    assert load["decode_ratio"] == load["decode_tokens_per_s"] / load["decode_tokens_per_s_alone"]


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("--chat", "--load", "2", "demo"), 1, "--chat and --load: measure one after the other"),
        (("--turns", "5", "demo"), 1, "--turns is only for --chat, --load and --tables"),
        (("--chat", "-p", "5", "demo"), 1, "-p measures speed, not --chat"),
        (("--load", "2", "--plot", "a.png", "demo"), 1, "--plot is only for --chat and --tables"),
        (("--load", "2", "--turns", "2,3", "text.gguf"), 1, "give --turns one number"),
        (("--chat", "--turns", "1", "demo"), 2, "argument --turns: a chat has at least 2 turns"),
        (("--chat", "--turns", "5,x", "demo"), 2, "argument --turns: must be a whole number"),
        (("--chat", "--pause", "-1", "demo"), 2, "argument --pause:"),
        (("--chat", "--think=high", "demo"), 2, "argument --think: must be true or false"),
        (("--load", "0", "demo"), 2, "argument --load: must be a whole number of at least 1"),
        (("--chat", "--plot", "a.bmp", "text.gguf"), 1, "--plot a.bmp: must end in .png"),
        (("--chat", "--plot", "no/a.png", "text.gguf"), 1, "--plot no/a.png: there is no folder"),
        (("--chat", "text.gguf"), 1, "text.gguf: is no .pth, safetensors, GGUF or rwkv.cpp file"),
        (("--chat", "nobody"), 1, "nobody: there is neither a file of that name nor a model in"),
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
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("text.gguf").write_text("no model at all")
    if words[-1] == "demo":
        words = (*words[:-1], str(EMBEDDED))
    assert_refused(("bench", *words), code, problem, capsys)


def test_a_model_that_cannot_think_is_played_without(bare: Anser) -> None:
    write_endless_gguf(bare.home / "endless.gguf")
    result = bare.run("bench", "--chat", "--turns", "2", "-n", "3", "endless.gguf")
    assert result.returncode == 0, result.stderr
    assert [row["thinking"] for row in tables(result.stdout)[-1]] == ["no"]
    assert "note: endless cannot think: played without it only\n" in result.stderr
    result = bare.run("bench", "--load", "2", "--think", "endless.gguf")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("Error: endless.gguf: cannot think; leave --think out\n")


def test_without_matplotlib_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert exit_code("bench", "--chat", "--plot", "a.png", str(EMBEDDED)) == 1
    problem = "Error: --plot needs matplotlib; install it: pip install matplotlib\n"
    assert capsys.readouterr().err == problem


@needs_demo
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_end_is_its_servers_end(bare: Anser, number: signal.Signals) -> None:
    process = bare.start("bench", "--chat", "--turns", "9999", "--pause", "0.1", str(EMBEDDED))
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("|    1 |"):
            assert process.poll() is None
        servers = children(process.pid)
        assert servers
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    expected = {signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert process.returncode == expected[number]
    assert "Traceback" not in errors
    deadline = time.monotonic() + PATIENCE_S
    while any(os.path.exists(f"/proc/{pid}") for pid in servers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def reply(first_s: float, num_tokens: int = 11, decode_s: float = 1.0, **changes: Any) -> Reply:
    values: dict[str, Any] = {
        "content": "a",
        "thinking": "",
        "num_prompt_tokens": 30,
        "num_cached_tokens": 10,
        "begin_s": 0.0,
        "gaps_s": (0.1,) * 10,
        "prefill_s": 0.1,
    }
    values |= changes
    return Reply(num_tokens=num_tokens, decode_s=decode_s, first_s=first_s, **values)


def test_how_turns_are_compared() -> None:
    """The first turn counts for memory and decode speed, not for the time to the first token."""
    turns = [
        Turn(1, reply(9.0, decode_s=2.0), Memory(100, 10)),
        Turn(2, reply(0.2), Memory(120, 25), reply(0.1)),
        Turn(3, reply(0.3, decode_s=4.0), Memory(130, 28), reply(0.3)),
    ]
    result = ChatResult("a", False, 0.0, turns)
    assert result.first_token_s == pytest.approx(0.25)
    assert result.first_token_ratio == pytest.approx(1.5)  # of 2 and 1
    assert result.decode_rates == (5.0, 2.5)
    assert result.decode_ratio == 0.5
    assert result.memory_growth_bytes == 12
    assert turns[1].reply.num_read == 20
    unknown = ChatResult("a", False, 0.0, [Turn(1, reply(1), Memory(None, 5)), *turns[1:]])
    assert unknown.memory_growth_bytes is None


def test_how_chats_at_once_are_compared() -> None:
    alone = [reply(0.1), reply(0.1, content="b")]
    streams = [
        Stream(1, alone, [reply(0.1), reply(0.1, begin_s=5.0, content="b")]),
        Stream(2, alone, [reply(0.6), reply(0.1, begin_s=5.0, content="other")]),
    ]
    result = LoadResult("a", False, 2, streams, Memory(1, 1))
    assert result.rate_alone == pytest.approx(10)
    # 20 tokens from 0.1 s to 1.6 s, and 20 from 5.1 s to 6.1 s.
    assert result.rate_together == pytest.approx(40 / 2.5)
    assert result.rate_ratio == pytest.approx(1.6)
    assert [stream.num_equal for stream in streams] == [2, 1]
    assert not result.are_equal
    (row,) = tables(load_table([result]).whole([result]))[0]
    assert (row["chats"], row["ratio"], row["texts"]) == ("2", "1.60", "DIFFERENT")
    rows = tables(stream_table().whole(streams))[0]
    assert [row["longest"] for row in rows] == ["100.0", "600.0"]
    assert [row["equal texts"] for row in rows] == ["2 of 2", "1 of 2"]


@pytest.mark.parametrize("is_demo", [True, False])
def test_no_two_messages_are_alike(is_demo: bool) -> None:
    messages = Script(is_demo, 1).messages(3)
    said = [next(messages) for _ in range(200)]
    assert len(set(said)) == 200
    again = Script(is_demo, 1).messages(3)
    assert said == [next(again) for _ in range(200)]
    firsts = {next(Script(is_demo, 1).messages(seed)) for seed in range(8)}
    assert len(firsts) == 8
