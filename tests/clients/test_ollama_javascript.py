"""The official JavaScript client, under Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import API_KEY
from tests.tools.running_server import DEMO, TIMEOUT_S, RunningServer, needs_demo

HERE = Path(__file__).parent

pytestmark = [
    needs_demo,
    pytest.mark.skipif(
        not (shutil.which("node") and (HERE / "node_modules").is_dir()),
        reason="needs Node, and `npm ci` in tests/clients",
    ),
]


@pytest.fixture(scope="module")
def seen(server: RunningServer) -> dict[str, Any]:
    """What the script reports."""
    done = subprocess.run(
        ["node", str(HERE / "ollama_client.mjs")],
        env={
            "PATH": os.environ["PATH"],
            "OLLAMA_HOST": server.url,
            "OLLAMA_API_KEY": API_KEY,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def test_it_lists_the_models(seen: dict[str, Any]) -> None:
    assert seen["names"] == [f"{DEMO}:latest"]


def test_it_streams_a_thought_and_an_answer(seen: dict[str, Any]) -> None:
    told = seen["sum"]
    assert told["chunks"] > 5
    assert told["thinking"]
    assert "42" in told["content"]
    assert told["done"] == "stop"


def test_it_calls_a_tool_and_hears_of_the_result(seen: dict[str, Any]) -> None:
    (call,) = seen["toolCall"]["calls"]
    assert (call["name"], call["arguments"]) == ("get_weather", {"city": "Paris"})
    assert seen["toolCall"]["reply"]


def test_it_may_leave(seen: dict[str, Any]) -> None:
    assert seen["aborted"] == "AbortError"


def test_it_tells_errors(seen: dict[str, Any]) -> None:
    assert seen["unknownModel"] == {"status": 404, "words": "model 'nobody' not found"}
    assert seen["withoutKey"]["status"] == 401
    assert seen["withoutKey"]["words"].startswith("unauthorized")
