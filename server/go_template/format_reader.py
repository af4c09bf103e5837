"""Reads a format of Go's printf: its verbs with flags, widths, precisions and argument numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Go's own bound of a width or a precision.
MAX_WIDTH = 1_000_000

_FLAGS = re.compile(r"[-+# 0]*")
# A longer number would be too large as well.
_DIGITS = re.compile(r"[0-9]{0,8}")


@dataclass(frozen=True)
class Spec:
    """One verb with all that stands before it; -1 for a width or precision not given."""

    flags: str
    width: int
    precision: int
    verb: str

    def pad(self, text: str, *, is_number: bool = False) -> str:
        missing = self.width - len(text)
        if missing <= 0:
            return text
        if "-" in self.flags:
            return text + " " * missing
        if "0" not in self.flags:
            return " " * missing + text
        sign = text[:1] if is_number and text[:1] in ("+", "-", " ") else ""
        return sign + "0" * missing + text[len(sign) :]

    def signed(self, text: str) -> str:
        if text.startswith("-"):
            return text
        return ("+" if "+" in self.flags else " " if " " in self.flags else "") + text


@dataclass(frozen=True)
class Placeholder:
    """A verb and the value that it writes."""

    spec: Spec
    value: Any


def padded_length(form: str, values: Sequence[Any]) -> int:
    """How long a format may make one value, so that a caller can refuse before it is made."""
    widths = [int(digits[:8]) for digits in re.findall(r"[0-9]+", form)]
    given = [abs(each) for each in values if _is_width(each)]
    widths += [max(given, default=0)] * form.count("*")
    return len(form) + sum(width for width in widths if width <= MAX_WIDTH)


class FormatReader:
    """Goes through a format once. `is_reordered` tells afterwards whether it names arguments by
    number; then values that no verb writes are no mistake.
    """

    def __init__(self, form: str, values: Sequence[Any]) -> None:
        self._form = form
        self._values = values
        self._at = 0
        self._next = 0  # the index of the argument that comes next
        self._is_after_index = False  # an argument number has just been read
        self._is_good_index = True
        self.is_reordered = False

    @property
    def unused(self) -> Sequence[Any]:
        return () if self.is_reordered else self._values[self._next :]

    def __iter__(self) -> Iterator[str | Placeholder]:
        """Texts as they are to be written, Go's words for mistakes among them, and verbs."""
        while (percent := self._form.find("%", self._at)) >= 0:
            yield self._form[self._at : percent]
            self._at = percent + 1
            yield from self._verb()
        yield self._form[self._at :]

    def _verb(self) -> Iterator[str | Placeholder]:
        self._is_good_index = True
        flags = self._matched(_FLAGS)
        self._read_index()
        width, more_flags, problem = self._width()
        flags += more_flags
        precision, other_problem = self._precision()
        yield problem + other_problem
        if not self._is_after_index:
            self._read_index()
        verb = self._form[self._at : self._at + 1]
        self._at += 1
        if not verb:
            yield "%!(NOVERB)"
        elif verb == "%":
            yield "%"
        elif not self._is_good_index:
            yield f"%!{verb}(BADINDEX)"
        elif self._next >= len(self._values):
            yield f"%!{verb}(MISSING)"
        else:
            flags = flags.replace("0", "") if "-" in flags else flags
            yield Placeholder(Spec(flags, width, precision, verb), self._values[self._next])
            self._next += 1

    def _width(self) -> tuple[int, str, str]:
        """The width (-1 for none), the flag that it brings, and what Go writes against it."""
        if self._takes("*"):
            given = self._given_width()
            if given is None:
                return -1, "", "%!(BADWIDTH)"
            return abs(given), "-" if given < 0 else "", ""
        width = self._number()
        if self._is_after_index and width >= 0:
            self._is_good_index = False
        return width, "", ""

    def _precision(self) -> tuple[int, str]:
        is_last = self._at + 1 >= len(self._form)
        if is_last or not self._takes("."):
            return -1, ""
        if self._is_after_index:
            self._is_good_index = False
        self._read_index()
        if self._takes("*"):
            given = self._given_width()
            return (-1, "%!(BADPREC)") if given is None or given < 0 else (given, "")
        return max(self._number(), 0), ""

    def _given_width(self) -> int | None:
        """The next value, for a star; None if it is no such number."""
        self._is_after_index = False
        if self._next >= len(self._values):
            return None
        value = self._values[self._next]
        self._next += 1
        return int(value) if _is_width(value) else None

    def _number(self) -> int:
        """-1 for none. One that is too large swallows the rest, as in Go."""
        digits = self._matched(_DIGITS)
        if digits and int(digits) > MAX_WIDTH:
            self._at = len(self._form)
            return -1
        return int(digits) if digits else -1

    def _read_index(self) -> None:
        """An argument number in brackets, if there is one here."""
        self._is_after_index = False
        if not self._form.startswith("[", self._at):
            return
        self.is_reordered = True
        end = self._form.find("]", self._at)
        if end < 0 or len(self._form) - self._at < 3:
            self._at += 1
            self._is_good_index = False
            return
        digits = self._form[self._at + 1 : end]
        self._at = end + 1
        is_number = digits.isascii() and digits.isdigit() and int(digits[:8]) <= MAX_WIDTH
        self._is_after_index = is_number
        if is_number and 1 <= int(digits[:8]) <= len(self._values):
            self._next = int(digits[:8]) - 1
        else:
            self._is_good_index = False

    def _takes(self, char: str) -> bool:
        if not self._form.startswith(char, self._at):
            return False
        self._at += 1
        return True

    def _matched(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._form, self._at)
        assert found is not None  # both patterns match nothing as well
        self._at = found.end()
        return found[0]


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_WIDTH
