"""The bounds of parsing and rendering."""

from __future__ import annotations

import time
from dataclasses import dataclass

from server.go_template.errors import TemplateError

# A published template has a few kilobytes.
MAX_TEMPLATE_CHARS = 1 << 20
# Control structures and parentheses inside each other, also through {{template}}. The evaluator
# takes at most five Python frames for each, so this keeps it below Python's limit of 1,000.
MAX_DEPTH = 100
# Characters of a text, or items of a list, that count as one step when a function reads them.
_ITEMS_PER_STEP = 64
# Texts that functions make may be this much longer than what is written in the end.
_MADE_PER_WRITTEN = 4
# Reading the clock costs as much as a step.
_STEPS_PER_CLOCK = 256


@dataclass(frozen=True)
class Limits:
    """Bounds of one rendering. A chat of a thousand messages takes about 50,000 steps.

    The seconds are those that its thread computes, so that a busy machine fails no request.
    """

    max_steps: int = 20_000_000
    max_output_chars: int = 16 << 20
    max_seconds: float = 5.0


class Budget:
    """What is left of the limits while one template renders."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._steps_left = limits.max_steps
        self._chars_left = limits.max_output_chars
        self._chars_to_make = _MADE_PER_WRITTEN * limits.max_output_chars
        self._deadline = time.thread_time() + limits.max_seconds
        self._until_clock = _STEPS_PER_CLOCK

    def step(self, count: int = 1) -> None:
        """Raises TemplateError when the steps or the time are used up."""
        self._steps_left -= count
        if self._steps_left < 0:
            raise TemplateError(f"template takes more than {self._limits.max_steps} steps")
        self._until_clock -= count
        if self._until_clock < 0:
            self._until_clock = _STEPS_PER_CLOCK
            if time.thread_time() > self._deadline:
                raise TemplateError(f"template takes longer than {self._limits.max_seconds:g} s")

    def read(self, num_items: int) -> None:
        """A function is about to go through so many characters, or items of a list."""
        self.step(num_items // _ITEMS_PER_STEP)

    def make(self, num_chars: int) -> None:
        """A function is about to make a text of so many characters. A variable may keep it, so all
        of them together are bounded.
        """
        self._chars_to_make -= num_chars
        if self._chars_to_make < 0:
            raise self._too_long()
        self.read(num_chars)

    def write(self, num_chars: int) -> None:
        """So many characters go out. Raises TemplateError when they are too many."""
        self._chars_left -= num_chars
        if self._chars_left < 0:
            raise self._too_long()

    def _too_long(self) -> TemplateError:
        return TemplateError(
            f"template writes more than {self._limits.max_output_chars} characters"
        )
