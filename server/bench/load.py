"""Plays several chats: each alone, and all at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError, Lock
from typing import Any

from server.bench.asking import Asker
from server.bench.conversation import SYSTEM, Script
from server.bench.results import Reply
from server.cli.client import Client


@dataclass(frozen=True)
class LoadPlan:
    num_chats: int
    num_turns: int
    think: bool
    model: str
    script: Script


Show = Callable[[str], None]


def play_alone(plan: LoadPlan, client: Client, show: Show) -> list[list[Reply]]:
    """The replies of each chat, one chat after the other."""
    asker = Asker(client, plan.model, plan.script.num_predict)
    asker.warm_up()
    replies = []
    for number in range(plan.num_chats):
        show(f"chat {number + 1} of {plan.num_chats}, alone")
        chat = _Chat(plan, asker, number)
        replies.append([chat.say_next() for _ in range(plan.num_turns)])
    return replies


def play_together(plan: LoadPlan, client: Client, show: Show) -> list[list[Reply]]:
    """The replies of each chat; all ask their next question at the same moment."""
    Asker(client, plan.model, plan.script.num_predict).warm_up()
    barrier = Barrier(plan.num_chats)
    progress = _Progress(plan, show)

    def play(number: int, own: Client) -> list[Reply]:
        chat = _Chat(plan, Asker(own, plan.model, plan.script.num_predict), number)
        replies = []
        try:
            for _ in range(plan.num_turns):
                barrier.wait()
                replies.append(chat.say_next())
                progress.step()
        except BaseException:
            barrier.abort()  # the others would wait for ever
            raise
        return replies

    with ExitStack() as stack:
        clients = [stack.enter_context(Client(client.url)) for _ in range(plan.num_chats)]
        pool = stack.enter_context(ThreadPoolExecutor(plan.num_chats))
        stack.callback(barrier.abort)  # before the pool waits for its threads, Ctrl-C included
        futures = [pool.submit(play, number, own) for number, own in enumerate(clients)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        causes = [error for error in errors if not isinstance(error, BrokenBarrierError)]
        if errors:
            raise (causes or errors)[0]
        return [future.result() for future in futures]


class _Chat:
    """One chat that grows."""

    def __init__(self, plan: LoadPlan, asker: Asker, number: int) -> None:
        self._asker = asker
        self._think = plan.think
        self._said = plan.script.messages(number)
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]

    def say_next(self) -> Reply:
        self._messages.append({"role": "user", "content": next(self._said)})
        reply = self._asker.ask(self._messages, think=self._think)
        self._messages.append(
            {"role": "assistant", "content": reply.content, "thinking": reply.thinking}
        )
        return reply


class _Progress:
    def __init__(self, plan: LoadPlan, show: Show) -> None:
        self._lock = Lock()
        self._total = plan.num_chats * plan.num_turns
        self._num_done = 0
        self._show = show

    def step(self) -> None:
        with self._lock:
            self._num_done += 1
            self._show(f"all at once: reply {self._num_done} of {self._total}")
