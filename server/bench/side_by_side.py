"""Plays the same chats on several servers, turn by turn, so that all see the same machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rwkv_core.bench.machine import ProcessMemory, memory_of
from server.bench.asking import Asker, Message
from server.bench.conversation import SYSTEM, Script
from server.bench.overview import TurnSample
from server.bench.results import Reply


class Player(Protocol):
    """A server that is asked, one reply at a time."""

    @property
    def pid(self) -> int: ...

    def warm_up(self) -> None:
        """Has everything loaded, and done for the first time."""

    def ask(self, messages: Sequence[Message]) -> Reply: ...

    def wait_until_idle(self) -> None: ...

    def state_bytes(self) -> int | None:
        """Memory that the states of chats take; None from a server that does not tell."""


class OwnPlayer:
    """Anser's server of process `pid`; it does not think."""

    def __init__(self, asker: Asker, pid: int) -> None:
        self.pid = pid
        self._asker = asker

    def warm_up(self) -> None:
        self._asker.warm_up()

    def ask(self, messages: Sequence[Message]) -> Reply:
        return self._asker.ask(messages, think=False)

    def wait_until_idle(self) -> None:
        self._asker.wait_until_idle()

    def state_bytes(self) -> int:
        return self._asker.memory().state_bytes


@dataclass(frozen=True)
class ChatsPlan:
    script: Script
    num_chats: int
    num_turns: int


def play_side_by_side(
    players: Sequence[Player], plan: ChatsPlan, show: Callable[[str], None]
) -> list[list[list[TurnSample]]]:
    """The turns of every chat of each player. A player's own replies are in its chat's history.

    Raises CommandError when a server fails.
    """
    played: list[list[list[TurnSample]]] = [[] for _ in players]
    for number in range(plan.num_chats):
        chats = [_Chat(player) for player in players]
        said = plan.script.messages(number)
        for turn in range(1, plan.num_turns + 1):
            text = next(said)
            for index, chat in enumerate(chats):
                whose = "" if index == 0 else ", the peer"
                show(f"chat {number + 1} of {plan.num_chats}, turn {turn}{whose}")
                chat.say(text)
        for done, chat in zip(played, chats, strict=True):
            done.append(chat.samples)
    return played


def loaded_memory(player: Player) -> ProcessMemory:
    """With the model in memory, after a first short reply."""
    player.warm_up()
    return memory_of(player.pid)


class _Chat:
    """One chat that grows. Its client sends all of it every time."""

    def __init__(self, player: Player) -> None:
        self.samples: list[TurnSample] = []
        self._player = player
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]

    def say(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        reply = self._player.ask(self._messages)
        self._messages.append({"role": "assistant", "content": reply.content})
        self._player.wait_until_idle()  # what is read ahead takes memory, and the others' time
        memory = memory_of(self._player.pid)
        self.samples.append(TurnSample(reply, memory, self._player.state_bytes()))
