"""llama.cpp's `llama-server` on the same file, as a child process that plays the same chats."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from server.bench.asking import Message
from server.bench.results import Reply
from server.cli.client import lines_of
from server.cli.errors import CommandError

_START_TIMEOUT_S = 600.0  # to read a large file from a slow disk
_STOP_TIMEOUT_S = 3.0
_PROBE_TIMEOUT_S = 10.0
_POLL_S = 0.05
_EVENT = b"data: "

# Linux then ends it with this process, whatever ends that.
_CHILD_CODE = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class LlamaServer:
    """A server of one model, with its own defaults for everything but the threads."""

    def __init__(self, peer: str, url: str, pid: int, options: Mapping[str, Any]) -> None:
        """`peer` is what the user called it, `options` are of every request."""
        self.pid = pid
        self._peer = peer
        self._options = options
        # Replies take as long as they take.
        self._http = httpx.Client(base_url=url, timeout=None, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def is_up(self) -> bool:
        try:
            return self._http.get("/health", timeout=_PROBE_TIMEOUT_S).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def warm_up(self) -> None:
        """Has everything done for the first time."""
        self.ask([{"role": "user", "content": "Hello!"}])

    def ask(self, messages: Sequence[Message]) -> Reply:
        """Raises CommandError when the server fails, or says nothing at all."""
        try:
            return self._measured(self._prompt(messages))
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise CommandError(f"--peer {self._peer}: does not answer ({reason})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(
                f"--peer {self._peer}: does not answer as llama-server does"
            ) from error

    def wait_until_idle(self) -> None:
        """It is when it has answered."""

    def state_bytes(self) -> None:
        """It does not tell."""

    def _prompt(self, messages: Sequence[Message]) -> str:
        """As the file's own template has it."""
        # Its chat endpoint would also look for calls of tools and thoughts in the reply.
        response = self._http.post("/apply-template", json={"messages": messages})
        self._check(response)
        prompt: str = response.json()["prompt"]
        return prompt

    def _measured(self, prompt: str) -> Reply:
        begin = time.perf_counter()
        contents: list[str] = []
        times: list[float] = []
        timings: Mapping[str, Any] | None = None
        asked = {"prompt": prompt, "stream": True, "timings_per_token": True}
        for event in self._events({**self._options, **asked}):
            if "error" in event:
                # It ends like that where the last character is not whole, as with random weights.
                if times and timings:
                    break
                raise CommandError(f"--peer {self._peer}: {event['error']}")
            if text := event["content"]:
                times.append(time.perf_counter())
                contents.append(text)
            timings = event.get("timings", timings)
        if not times or timings is None:
            raise CommandError(f"--peer {self._peer}: sent no text, or no timings after it")
        return Reply(
            content="".join(contents),
            thinking="",
            num_prompt_tokens=timings["cache_n"] + timings["prompt_n"],
            num_cached_tokens=timings["cache_n"],
            num_tokens=timings["predicted_n"],
            begin_s=begin,
            first_s=times[0] - begin,
            gaps_s=tuple(later - earlier for earlier, later in pairwise(times)),
            prefill_s=timings["prompt_ms"] / 1e3,
            decode_s=timings["predicted_ms"] / 1e3,
        )

    def _events(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        with self._http.stream("POST", "/completion", json=request) as response:
            self._check(response)
            for line in lines_of(response):
                if line.startswith(_EVENT + b"{"):
                    event: Mapping[str, Any] = json.loads(line.removeprefix(_EVENT))
                    yield event

    def _check(self, response: httpx.Response) -> None:
        if response.status_code != httpx.codes.OK:
            words = response.read().decode(errors="replace").replace("\n", " ")
            raise CommandError(f"--peer {self._peer}: {response.status_code}: {words}")


def check_peer(path: str) -> None:
    """Raises CommandError for what is no executable: better now than after a chat."""
    if not Path(path).is_file() or not os.access(path, os.X_OK):
        raise CommandError(f"--peer {path}: is no executable file; name a llama-server")


@contextmanager
def llama_server(
    path: str, model: Path, *, num_threads: int, options: Mapping[str, Any], folder: Path
) -> Iterator[LlamaServer]:
    """Start the executable, end it on leaving. Its log is written to `folder`.

    Raises CommandError when it cannot serve the GGUF file `model`.
    """
    port = _free_port()
    # An absolute path: a bare name would be searched for in $PATH.
    words = [os.path.abspath(path), "-m", str(model.resolve()), "-t", str(num_threads)]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    log_path = folder / "llama-server.log"
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD_CODE, str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for this process, which ends it
        )
    server = LlamaServer(path, f"http://127.0.0.1:{port}", child.pid, options)
    try:
        _wait_until_up(server, child, path, log_path)
        yield server
    finally:
        server.close()
        _stop(child)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(
    server: LlamaServer, child: subprocess.Popen[bytes], path: str, log_path: Path
) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while child.poll() is None:
        if server.is_up():
            return
        if time.monotonic() > deadline:
            raise CommandError(f"--peer {path}: did not answer within {_START_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    raise CommandError(
        f"--peer {path}: ended with exit code {child.returncode} ({said}); "
        "name a llama-server that can read the file"
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
