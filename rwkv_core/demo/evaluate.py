"""What the demo model can do: `python -m rwkv_core.demo.evaluate [FILE]`.

Greedy replies to fresh dialogues of each kind, taken apart by the same parser as the server's, in
one Markdown table. The exit status is 1 when a required share is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rwkv_core.demo.dialogues import Dialogue, Mode, generate, prompt_text
from rwkv_core.demo.greedy import Completion, complete_all
from rwkv_core.demo.judging import is_right, is_thought_closed
from rwkv_core.loading import load_model
from rwkv_core.model import Model

EMBEDDED = Path(__file__).with_name("rwkv7-demo.gguf")
MAX_NEW_TOKENS = 200  # the longest right completion has about 120


@dataclass(frozen=True)
class Ability:
    """A row of the table: which dialogues, and the share that must be right (None: only shown)."""

    label: str
    kind: str
    mode: Mode | None
    required: float | None


ABILITIES = (
    Ability("recall of facts told earlier", "recall", None, 0.95),
    Ability("arithmetic, thinking", "arithmetic", Mode.THINK, 0.95),
    Ability("arithmetic, answered directly", "arithmetic", Mode.NO_THINK, None),
    Ability("tool choice, call forced by the prompt", "tool_call", Mode.TOOL_CALL, 0.95),
    Ability("tool choice, model decides whether to call", "tool_choice", None, None),
    Ability("reply made of a tool's result", "tool_result", None, None),
    Ability("identity and greeting", "identity", None, None),
    Ability("other small talk", "small_talk", None, None),
)
REQUIRED_CLOSED = 0.99
REQUIRED_ENDED = 0.99


@dataclass
class Share:
    """So many out of so many."""

    label: str
    required: float | None
    good: int = 0
    total: int = 0

    def add(self, is_good: bool) -> None:
        self.good += is_good
        self.total += 1

    @property
    def is_missed(self) -> bool:
        return self.required is not None and self.good < self.required * self.total

    def row(self) -> str:
        required = "" if self.required is None else f"{self.required:.0%}"
        mark = " (missed)" if self.is_missed else ""
        percent = 100 * self.good / max(1, self.total)
        return f"| {self.label} | {percent:.1f}%{mark} | {self.good} of {self.total} | {required} |"


@dataclass(frozen=True)
class Mistake:
    """A wrong reply, kept to be looked at."""

    dialogue: Dialogue
    text: str


@dataclass
class Report:
    """All shares, and the wrong replies of each kind."""

    abilities: list[Share] = field(default_factory=list)
    closed: Share = field(default_factory=lambda: Share("thoughts closed", REQUIRED_CLOSED))
    ended: Share = field(
        default_factory=lambda: Share("replies that end by themselves", REQUIRED_ENDED)
    )
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def shares(self) -> list[Share]:
        return [*self.abilities, self.closed, self.ended]

    def table(self) -> str:
        head = ["| ability | right | count | required |", "|---|---|---|---|"]
        return "\n".join([*head, *(share.row() for share in self.shares)])


def evaluate(model: Model, num_dialogues: int, seed: int) -> Report:
    """Runs `num_dialogues` fresh dialogues of each ability."""
    report = Report()
    for ability in ABILITIES:
        fresh = list(islice(generate(seed, ability.kind, ability.mode), num_dialogues))
        share = Share(ability.label, ability.required)
        report.abilities.append(share)
        prompts = [model.tokenizer.encode(prompt_text(dialogue)) for dialogue in fresh]
        completions = complete_all(model, prompts, MAX_NEW_TOKENS)
        for dialogue, completion in zip(fresh, completions, strict=True):
            _judge(model, dialogue, completion, share, report)
    return report


def _judge(
    model: Model, dialogue: Dialogue, completion: Completion, share: Share, report: Report
) -> None:
    text = model.tokenizer.decode(completion.token_ids)
    is_good = is_right(dialogue, text)
    share.add(is_good)
    report.ended.add(completion.is_ended)
    if dialogue.mode is Mode.THINK:
        report.closed.add(is_thought_closed(text))
    if not is_good or not completion.is_ended:
        report.mistakes.append(Mistake(dialogue, text))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures what the demo model can do.")
    parser.add_argument("file", nargs="?", type=Path, default=EMBEDDED, help="the model's file")
    parser.add_argument("--dialogues", type=int, default=500, help="dialogues of each kind")
    parser.add_argument("--seed", type=int, default=2, help="1 is the one it was trained with")
    parser.add_argument("--mistakes", type=int, default=0, help="show so many wrong replies")
    options = parser.parse_args(arguments)
    model = load_model(options.file)
    started = time.monotonic()
    report = evaluate(model, options.dialogues, options.seed)
    for mistake in report.mistakes[: options.mistakes]:
        print(f"{prompt_text(mistake.dialogue)}⟦{mistake.text}⟧ {mistake.dialogue.expected}\n\n")
    seconds = time.monotonic() - started
    print(
        f"{options.file.name}: {options.dialogues} fresh dialogues of each kind, "
        f"seed {options.seed}, greedy, {seconds:.0f} s\n"
    )
    print(report.table())
    return int(any(share.is_missed for share in report.shares))


if __name__ == "__main__":
    sys.exit(main())
