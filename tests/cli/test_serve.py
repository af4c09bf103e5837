"""`anser serve`: its start line, its end, what keeps it from starting; `anser` by itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from server.settings.table import IGNORED, SETTINGS
from tests.tools.anser_command import PATIENCE_S, Anser


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command that said nothing else."""
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_the_start_line_holds_a_curl_that_works_and_sigterm_ends_it(anser: Anser) -> None:
    process = Anser(anser.home, anser.models, "127.0.0.1:0").start("serve")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert str(anser.models) in line
        match = re.search(r"curl (\S+) -d '(.*)'$", line)
        assert match is not None
        body = json.loads(match[2])
        url = match[1].removesuffix("/api/generate")
        assert httpx.post(match[1], json={**body, "model": "none"}).status_code == 404
        assert httpx.get(url).text == "Ollama is running"
    finally:
        process.terminate()
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert stdout == ""
    assert process.returncode == 0
    assert "Traceback" not in stderr


def test_ctrl_c_ends_it_in_the_middle_of_a_reply(anser: Anser) -> None:
    process = Anser(anser.home, anser.models, "127.0.0.1:0").start("serve")
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert found is not None
    body = {"model": "rwkv7-g1-endless", "prompt": "Hello"}
    with httpx.stream("POST", f"{found[0]}/api/generate", json=body, timeout=PATIENCE_S) as reply:
        lines = reply.iter_lines()
        assert "error" not in json.loads(next(lines))
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        rest = list(lines)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - start < 5
    assert process.returncode == 0
    assert json.loads(rest[-1])["error"]
    assert "Traceback" not in stderr


def test_a_port_in_use(anser: Anser) -> None:
    problem = one_line(anser.run("serve"), 1)
    assert f"cannot listen on {anser.host} (Address already in use)" in problem
    assert "OLLAMA_HOST" in problem


@pytest.mark.parametrize("host", ["a..b:1", "192.0.2.1:1", "127.0.0.1:99999"])
def test_an_address_that_cannot_be(tmp_path: Path, host: str) -> None:
    assert "OLLAMA_HOST" in one_line(Anser(tmp_path, tmp_path / "models", host).run("serve"), 1)


def test_a_models_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    problem = one_line(Anser(tmp_path, tmp_path / "file" / "models").run("serve"), 1)
    assert f"{tmp_path / 'file' / 'models'}: cannot keep models there" in problem
    assert "OLLAMA_MODELS" in problem


@pytest.mark.parametrize(
    "words", [("serve", "--port", "1"), ("serve", "now"), ("dance",), ("create",), ("--loud",)]
)
def test_wrong_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    problem = one_line(Anser(tmp_path, tmp_path / "models").run(*words), 2)
    assert "--help`" in problem


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("dance",), 'unknown command "dance"; see `anser --help`'),
        (("lst",), 'unknown command "lst"; did you mean `anser list`?; see `anser --help`'),
        (("--loud",), "unknown flag: --loud; see `anser --help`"),
        (("--loud=1", "ps"), "unknown flag: --loud; see `anser --help`"),
        (("run", "demo", "--loud", "Hello"), "unknown flag: --loud; see `anser run --help`"),
        (("ps", "a", "b"), "unexpected: b; see `anser ps --help`"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, words: tuple[str, ...], problem: str) -> None:
    result = Anser(tmp_path, tmp_path / "models").run(*words)
    assert one_line(result, 2).strip() == f"Error: {problem}"


def test_no_words_get_the_help(tmp_path: Path) -> None:
    anser = Anser(tmp_path, tmp_path / "models")
    help_page, nothing = anser.run("--help"), anser.run()
    assert (nothing.returncode, nothing.stdout) == (0, help_page.stdout)


def test_its_help_tells_every_variable_with_its_value(tmp_path: Path) -> None:
    given = {"OLLAMA_NUM_PARALLEL": "3", "ANSER_API_KEY": "sesame", "OLLAMA_HOST": ""}
    page = Anser(tmp_path, tmp_path / "models").run("serve", "--help", changes=given)
    assert (page.returncode, page.stderr) == (0, "")
    text = " ".join(page.stdout.split())
    assert all(f"{each.variable} = " in text for each in SETTINGS)
    assert "OLLAMA_HOST = 127.0.0.1:11434 (default)" in text
    assert "OLLAMA_NUM_PARALLEL = 3 (environment)" in text
    assert "ANSER_API_KEY = set (environment)" in text
    assert "sesame" not in text
    nothing = text.partition("accepted and change nothing: ")[2].rstrip(".").split(", ")
    assert set(nothing) == set(IGNORED)


def test_help_and_version(tmp_path: Path) -> None:
    anser = Anser(tmp_path, tmp_path / "models")
    usage = anser.run("--help")
    assert usage.returncode == 0
    for command in ("serve", "run", "create", "list"):
        assert re.search(rf"^ +{command}\b", usage.stdout, re.MULTILINE)
        assert f"anser {command}" in anser.run(command, "--help").stdout
    assert re.fullmatch(r"anser \S.*\n", anser.run("--version").stdout)


def test_what_needs_no_model_does_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "import server.cli.run, server.cli.line_editor, server.cli.list\n"
        "print([name for name in ('torch', 'fastapi', 'uvicorn') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_closed_pipe_is_no_traceback(anser: Anser) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "server.cli", "list"]
    done = subprocess.run(
        command,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=anser.environment,
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_the_help_of_serve_shows_what_is_set_and_by_whom(tmp_path: Path) -> None:
    anser = Anser(tmp_path, tmp_path / "models")
    (tmp_path / ".anser").mkdir()
    (tmp_path / ".anser" / "server.toml").write_text('keep_alive = "7m"\napi_key = ["sesame"]\n')
    done = anser.run("serve", "--help", changes={"OLLAMA_MAX_QUEUE": "7"})
    text = " ".join(done.stdout.split())
    for words in (
        "OLLAMA_KEEP_ALIVE = 7m (file)",
        "OLLAMA_MAX_QUEUE = 7 (environment)",
        "ANSER_DEVICE = auto (default)",
        "ANSER_API_KEY = set (file)",
    ):
        assert words in text
    assert "sesame" not in text
    done = anser.run("serve", "--help", changes={"ANSER_DEVICE": "tpu"})
    assert done.returncode == 0
    assert 'The present values are not shown: ANSER_DEVICE="tpu"' in done.stdout


def test_serve_takes_flags_and_a_file(anser: Anser, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('host = "127.0.0.1:1"\nstates = "off"\n')
    here = Anser(tmp_path, anser.models, host="")
    words = ("--config", str(file), "--host", "127.0.0.1:0", "--no-prune", "--threads", "1")
    process = here.start("serve", *words)
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert found is not None, process.communicate()
    assert httpx.get(found[0]).text == "Ollama is running"
    process.terminate()
    process.communicate(timeout=PATIENCE_S)
    assert not (tmp_path / ".anser" / "states").exists()
    problem = one_line(here.run("serve", "--config", str(file), "--device", "tpu"), 1)
    assert '--device="tpu"' in problem


def test_help_of_a_command_in_both_ways(bare: Anser) -> None:
    assert bare.run("help", "run").stdout == bare.run("run", "--help").stdout
    assert bare.run("help").stdout == bare.run("--help").stdout
    assert '"dance"' in one_line(bare.run("help", "dance"), 2)
    assert bare.run("ls").stdout == bare.run("list").stdout


@pytest.mark.parametrize("words", [("--help",), ("help", "serve"), ("completion", "bash")])
def test_help_into_a_closed_pipe(bare: Anser, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=bare.environment,
        check=False,
    )
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 1)


def test_an_open_door_is_said_in_the_log(anser: Anser) -> None:
    for host, key, is_warned in (
        ("0.0.0.0:0", "", True),
        ("0.0.0.0:0", "sesame", False),
        ("127.0.0.1:0", "", False),
    ):
        here = Anser(anser.home, anser.models, host)
        changes = {"ANSER_API_KEY": key, "OLLAMA_KV_CACHE_TYPE": "q8_0", "ANSER_DEVCIE": "cpu"}
        process = here.start("serve", changes=changes)
        assert process.stdout is not None
        assert "Anser listens" in process.stdout.readline()
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE_S)
        assert ("ANSER_API_KEY keeps others out" in log) == is_warned
        assert "OLLAMA_KV_CACHE_TYPE changes nothing" in log
        assert "did you mean ANSER_DEVICE?" in log
        assert "sesame" not in log
