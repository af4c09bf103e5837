"""The `llm` command with its Ollama plug-in, in a process of its own as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import API_KEY
from tests.tools.running_server import DEMO, TIMEOUT_S, RunningServer, needs_demo

pytestmark = needs_demo

MODEL = f"ollama/{DEMO}:latest"
WEATHER = '''
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return '{"temperature": 21, "sky": "sunny"}'
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llm")


def run(server: RunningServer, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(folder),
        "LLM_USER_PATH": str(folder),
        "OLLAMA_HOST": server.url,
        "OLLAMA_API_KEY": API_KEY,
    }
    return subprocess.run(
        [sys.executable, "-m", "llm", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_it_lists_the_models(server: RunningServer, folder: Path) -> None:
    listed = run(server, folder, "ollama", "models")
    assert (listed.returncode, listed.stderr) == (0, "")
    (line,) = [line for line in listed.stdout.splitlines() if DEMO in line]
    assert all(word in line for word in ("completion", "thinking", "tools"))


def test_it_streams_an_answer_after_a_thought(server: RunningServer, folder: Path) -> None:
    options = ("-o", "temperature", "0", "-o", "think", "true")
    asked = run(server, folder, "-m", MODEL, *options, "What is 12 + 30?")
    assert asked.returncode == 0, asked.stderr
    assert "42" in asked.stdout
    again = run(server, folder, "-c", "-o", "temperature", "0", "What is 17 + 25?")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip()


def test_it_calls_a_tool(server: RunningServer, folder: Path) -> None:
    options = ("-o", "temperature", "0", "-o", "think", "false", "--td")
    asked = run(
        server, folder, "-m", MODEL, *options, "--functions", WEATHER,
        "What is the weather in Paris?",
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert "get_weather" in asked.stderr
    assert "Paris" in asked.stderr
    assert asked.stdout.strip()


def test_it_says_why_a_key_is_wrong(server: RunningServer, folder: Path) -> None:
    asked = run(server, folder, "-m", MODEL, "--key", "wrong", "Hello")
    assert asked.returncode != 0
    assert "unauthorized" in asked.stderr
