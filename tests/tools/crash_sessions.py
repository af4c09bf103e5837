"""Chats with a server that is killed again and again, and a check of what the next one knows.

    python -m tests.tools.crash_sessions FOLDER [--chats 1000] [--kills 20] [--seed 0]

Every chat has a fact of its own. A chat is safe when, after its reply, `/metrics` has said that the
engine has nothing to do and that no state waits to be written. After a kill -9

- the store opens, and nobody complains;
- a safe chat goes on without reading its first turn again;
- every chat, safe or not, goes on with the words of a server that keeps no states at all.

Ends with a traceback when anything is not so.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.settings import Settings
from tests.tools.anser_command import PATIENCE_S, REPOSITORY, Anser
from tests.tools.running_server import DEMO, RunningServer, running

NUM_CLIENTS = 4
# Of the safe chats, how many are looked at after each kill; in the end all chats are.
NUM_SAMPLES = 12

_OPTIONS = {"temperature": 0, "num_predict": 40}
_QUESTIONS = ("What is my favourite number?", "What is my name?", "Hello!", "What is 4 + 5?")
_NAMES = ("Ada", "Tom", "Eva", "Max", "Ida", "Leo", "Mia", "Ben")

Json = dict[str, Any]


@dataclass
class Chat:
    """`messages` are its first turn, once it has one; `num_prompt_tokens` are of that."""

    number: int
    messages: list[Json] = field(default_factory=list)
    num_prompt_tokens: int = 0
    is_safe: bool = False

    def begin(self, url: str) -> None:
        name = _NAMES[self.number % len(_NAMES)]
        text = f"My name is {name}. My favourite number is {self.number}."
        messages = [{"role": "user", "content": text}]
        answer = ask(url, messages)
        self.num_prompt_tokens = answer["prompt_eval_count"]
        self.messages = [*messages, answer["message"]]

    def next_messages(self, question: str) -> list[Json]:
        return [*self.messages, {"role": "user", "content": question}]


@dataclass
class Server:
    """A process, which `kill` ends, with the models and states in the folder."""

    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def is_settled(self) -> bool:
        """Whether all states of the requests that are over are on disk."""
        page = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text
        families = text_string_to_metric_families(page)
        samples = [sample for family in families for sample in family.samples]
        busy = [each.value for each in samples if each.name == "anser_engine_busy"]
        waiting = [
            each.value
            for each in samples
            if each.name == "anser_state_bytes" and each.labels["tier"] == "disk_queue"
        ]
        dropped = [each.value for each in samples if each.name == "anser_states_dropped_total"]
        assert dropped == [0.0]
        return busy == [0.0] and waiting == [0.0]

    def settle(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.is_settled():
            assert time.monotonic() < deadline, "states are not written"
            time.sleep(0.02)


class Crashes:
    """The whole story, in `folder`."""

    def __init__(self, folder: Path, num_chats: int, num_kills: int, seed: int) -> None:
        self._folder = folder
        self._num_kills = num_kills
        self._choices = random.Random(seed)
        self._chats = [Chat(number) for number in range(1, num_chats + 1)]
        self.num_resumed = 0

    def run(self, reference: RunningServer) -> None:
        unused = list(self._chats)
        share = max(2, len(unused) // self._num_kills)
        for number in range(1, self._num_kills + 1):
            chats, unused = unused[:share], unused[share:]
            if number % 4 == 2:
                self._kill_while_it_starts()
            with self._served() as server:
                self._resume(server, reference, self._sample())
                self._begin(server, chats[: share // 2])
                server.settle()
                for chat in chats[: share // 2]:
                    chat.is_safe = True
                self._kill_at_work(server, chats[share // 2 :])
            unused += [chat for chat in chats if not chat.messages]  # for another try
            self._show(f"killed {number} of {self._num_kills} times")
        with self._served() as server:
            self._begin(server, unused)
            begun = [chat for chat in self._chats if chat.messages]
            self._resume(server, reference, begun)
        self._check_logs()
        self._show(f"{self.num_resumed} chats resumed, {len(begun)} of {len(self._chats)} begun")

    def _begin(self, server: Server, chats: Sequence[Chat]) -> None:
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            list(pool.map(lambda chat: chat.begin(server.url), chats))

    def _sample(self) -> list[Chat]:
        begun = [chat for chat in self._chats if chat.messages]
        return self._choices.sample(begun, min(NUM_SAMPLES, len(begun)))

    def _resume(self, server: Server, reference: RunningServer, chats: Sequence[Chat]) -> None:
        """Asks a question in each of the chats, here and where nothing is known."""
        questions = [self._choices.choice(_QUESTIONS) for _ in chats]
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            answers = pool.map(
                lambda chat, question: ask(server.url, chat.next_messages(question)),
                chats,
                questions,
            )
            for chat, question, answer in zip(chats, questions, answers, strict=True):
                cold = ask(reference.url, chat.next_messages(question))
                assert cold["prompt_cached_count"] == 0
                assert answer["message"] == cold["message"], f"chat {chat.number}"
                num_cached = answer["prompt_cached_count"]
                assert not chat.is_safe or num_cached >= chat.num_prompt_tokens, (
                    f"chat {chat.number} was written, and {num_cached} of its tokens are found"
                )
                self.num_resumed += 1

    def _kill_at_work(self, server: Server, chats: Sequence[Chat]) -> None:
        """While chats begin and others go on. Those that get no answer have not begun."""
        pending = [*chats, *self._sample()]
        self._choices.shuffle(pending)
        is_dead = threading.Event()

        def work(chat: Chat) -> None:
            try:
                if not is_dead.is_set():
                    if chat.messages:
                        ask(server.url, chat.next_messages("Thanks!"))
                    else:
                        chat.begin(server.url)
            except httpx.TransportError:
                assert is_dead.is_set(), "the server has died by itself"

        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            futures = [pool.submit(work, chat) for chat in pending]
            # At some moment of the work: after so many of the answers, and a little later.
            num_answers = self._choices.randrange(len(pending))
            while sum(future.done() for future in futures) < num_answers:
                time.sleep(0.001)
            time.sleep(self._choices.random() * 0.05)
            is_dead.set()
            server.kill()
            for future in futures:
                future.result()

    def _kill_while_it_starts(self) -> None:
        with self._process() as process:
            time.sleep(self._choices.uniform(0.5, 3.0))
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)

    @contextmanager
    def _process(self) -> Iterator[subprocess.Popen[str]]:
        anser = Anser(self._folder, self._folder / "models", "127.0.0.1:0")
        # Where this process has found the kernels, the server has to find them too.
        paths = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "serve"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._folder,
                env={
                    **anser.environment,
                    "PYTHONPATH": paths,
                    "ANSER_STATES_DISK": "8GB",
                },
            )
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE_S)

    @contextmanager
    def _served(self) -> Iterator[Server]:
        with self._process() as process:
            assert process.stdout is not None
            match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert match, self._log.read_text()
            yield Server(match[0], process)

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _check_logs(self) -> None:
        """No process that was killed gives the next one a reason to complain."""
        lines = self._log.read_text().splitlines()
        assert any("loaded rwkv7-demo" in line for line in lines)
        complaints = [line for line in lines if re.search("WARN|ERROR|Traceback", line)]
        assert not complaints, complaints

    def _show(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def ask(url: str, messages: list[Json]) -> Json:
    body = {"model": DEMO, "messages": messages, "options": _OPTIONS, "think": False}
    response = httpx.post(f"{url}/api/chat", json=body | {"stream": False}, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


def crash(folder: Path, num_chats: int, num_kills: int, seed: int) -> Crashes:
    """Plays the story in an empty folder."""
    story = Crashes(folder, num_chats, num_kills, seed)
    # Not one state fits into its memory.
    settings = Settings(models=folder / "models", device="cpu", num_parallel=1, states_memory=1)
    with running(settings) as reference:
        story.run(reference)
    return story


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="to be made, and deleted if all is well")
    parser.add_argument("--chats", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    crash(arguments.folder, arguments.chats, arguments.kills, arguments.seed)
    shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
