"""Plays one chat and measures each of its turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from server.bench.asking import Asker
from server.bench.conversation import SYSTEM, Script
from server.bench.results import Turn

# Turns whose message is asked in a chat of its own too, to compare with.
_NUM_PROBES = 10


@dataclass(frozen=True)
class ChatPlan:
    """`pause_s` is how long the user takes between a reply and the next message."""

    num_turns: int
    think: bool
    pause_s: float


def play_chat(
    asker: Asker, script: Script, plan: ChatPlan, seed: int, show: Callable[[str], None]
) -> Iterator[Turn]:
    """The turns of a chat, each as soon as it is over. Its client sends all of it every time.

    Raises CommandError when the server fails.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    script_messages = script.messages(seed)
    probes = _probed_turns(plan.num_turns)
    for number in range(1, plan.num_turns + 1):
        show(f"turn {number} of {plan.num_turns}{', thinking' if plan.think else ''}")
        said = {"role": "user", "content": next(script_messages)}
        messages.append(said)
        reply = asker.ask(messages, think=plan.think)
        messages.append({"role": "assistant", "content": reply.content, "thinking": reply.thinking})
        if number in probes or number in (1, plan.num_turns):
            asker.wait_until_idle()  # what is being read ahead takes memory, too
        memory = asker.memory()
        fresh = None
        if number in probes:
            time.sleep(plan.pause_s)  # as before a turn: processors that rested wake up slowly
            fresh = asker.ask([messages[0], said], think=plan.think)
            asker.wait_until_idle()
        yield Turn(number, reply, memory, fresh)
        if number < plan.num_turns:
            time.sleep(plan.pause_s)


def _probed_turns(num_turns: int) -> frozenset[int]:
    """Evenly spaced, from the second turn to the last."""
    count = min(_NUM_PROBES, num_turns - 1)
    step = (num_turns - 2) / max(count - 1, 1)
    return frozenset(round(2 + index * step) for index in range(count))
