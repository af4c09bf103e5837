"""The processes that the scenarios talk to: Anser and Open WebUI, each with a folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from server.store.demo_model import ensure_demo_model
from server.store.store import Store
from tests.tools.anser_command import REPOSITORY, Anser
from tests.tools.server_models import add_endless_model
from tests.tools.waiting import wait_until

# A small machine needs most of a minute until Open WebUI has imported all of its libraries.
START_S = 600.0
STOP_S = 60.0

ENDLESS = "endless"
TASK_MODEL = "tasks"  # what Open WebUI asks for titles, tags and what to ask next
OPENAI_PREFIX = "openai"  # before the names of models behind the OpenAI connection

# Nothing is looked up or downloaded, and nothing is sent to anybody. Open WebUI offers every model
# tools of its own, whose description is longer than the chats that a small model was made for.
_OFFLINE = {
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
    "ANONYMIZED_TELEMETRY": "false",
    "SCARF_NO_ANALYTICS": "true",
    "DO_NOT_TRACK": "true",
    "DEFAULT_MODEL_METADATA": '{"capabilities": {"builtin_tools": false}}',
}


@dataclass(frozen=True)
class Process:
    """A server that answers at `url` and writes to the file `log`."""

    url: str
    log: Path

    def count(self, text: str) -> int:
        """How many lines of its log hold `text`."""
        return sum(text in line for line in self.log.read_text(errors="replace").splitlines())


@contextmanager
def anser_running(folder: Path) -> Iterator[Process]:
    """`anser serve` with the demo model and one that never ends a reply."""
    folder.mkdir()
    store = Store(folder / "models")
    ensure_demo_model(store)
    add_endless_model(store, ENDLESS, folder)
    url = f"http://127.0.0.1:{free_port()}"
    anser = Anser(folder, store.root, url)
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = anser.environment | {
        "PYTHONPATH": path,
        "OLLAMA_DEBUG": "1",  # every request is a line of the log
        "ANSER_REQUEST_TIMEOUT": "600s",  # on a machine that is busy with something else
    }
    command = [sys.executable, "-m", "server.cli", "serve"]
    with _running(command, environment, folder, f"{url}/api/version") as log:
        yield Process(url, log)


@contextmanager
def open_webui_running(executable: str, folder: Path, anser: str) -> Iterator[Process]:
    """Open WebUI, fresh, with Anser as its Ollama, its OpenAI connection and its embeddings."""
    folder.mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = _OFFLINE | {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "DATA_DIR": str(folder / "data"),
        "WEBUI_SECRET_KEY": "of one run, on a port of this machine",
        "OLLAMA_BASE_URL": anser,
        "OPENAI_API_BASE_URL": f"{anser}/v1",
        "OPENAI_API_KEY": "none",
        "RAG_EMBEDDING_ENGINE": "ollama",
        "RAG_EMBEDDING_MODEL": "rwkv7-demo:latest",
        "OPENAI_API_CONFIGS": f'{{"0": {{"enable": true, "prefix_id": "{OPENAI_PREFIX}"}}}}',
        "TASK_MODEL": TASK_MODEL,
    }
    command = [executable, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with _running(command, environment, folder, f"{url}/health") as log:
        yield Process(url, log)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, health: str
) -> Iterator[Path]:
    """The log of a process from its first good answer at `health` on; ends the process."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            cwd=folder, env=dict(environment),
        )  # fmt: skip
    try:
        wait_until(lambda: _answers(health) or process.poll() is not None, START_S)
        assert process.poll() is None, f"{command[0]} ended:\n{log.read_text(errors='replace')}"
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=STOP_S).is_success
    except httpx.TransportError:
        return False
