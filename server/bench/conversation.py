"""What the user says in the chats that are measured: no two messages are alike."""

from __future__ import annotations

import filecmp
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkv_core.demo import arithmetic, recall
from rwkv_core.demo.evaluate import EMBEDDED

SYSTEM = "You are a helpful assistant."

_THINGS = (
    "the river", "the harbour", "the old bridge", "the winter", "the market", "the garden",
    "the railway", "the mountains", "the library", "the weather", "the kitchen", "the island",
)  # fmt: skip
_ASKS = (
    "Tell me what {a} has to do with {b} and {c}, and why that is so.",
    "Which would you rather write about, {a}, {b} or {c}, and for whom?",
    "Explain {a} to a child who has only ever seen {b} and {c}.",
    "Write two lines about {a}, then one about {b}, and leave out {c}.",
)


@dataclass(frozen=True)
class Script:
    """Chats for a kind of model. A reply has at most `num_predict` tokens."""

    is_demo: bool
    num_predict: int

    def messages(self, seed: int) -> Iterator[str]:
        """Endless messages of one chat, the same for the same seed; the chats differ from their
        first message on.
        """
        rng = random.Random(seed)
        known: set[str] = set()
        while True:
            text = _demo(rng) if self.is_demo else _any(rng)
            if text not in known:
                known.add(text)
                yield text


def script_of(file: Path, num_predict: int | None) -> Script:
    """For the model in a file: the demo knows its own dialogues only, and ends its replies itself;
    those of others are cut.
    """
    is_demo = file.is_file() and filecmp.cmp(file, EMBEDDED, shallow=False)
    return Script(is_demo, num_predict or (200 if is_demo else 32))


def _demo(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return arithmetic.problem(rng).ask
    return recall.tell(rng, recall.new_facts(rng, 1)).ask


def _any(rng: random.Random) -> str:
    a, b, c = rng.sample(_THINGS, 3)
    return f"{rng.randrange(10, 100)}. {rng.choice(_ASKS).format(a=a, b=b, c=c)}"
