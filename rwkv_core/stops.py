"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop string; holds back what may become part of one.

    The stop that begins first counts, and of two that begin together the shorter: how the text is
    cut into pieces changes nothing. Empty stops are ignored. Time is linear in the text, for any
    stops.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [_StopProgress(stop) for stop in dict.fromkeys(stops) if stop]
        self._held = ""
        self._num_read = 0
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop that ended the text; what is pushed after it is dropped."""
        return self._matched

    def push(self, text: str) -> str:
        """The text that has become safe to show."""
        if self._matched is not None:
            return ""
        for stop in self._stops:
            stop.advance(text, self._num_read)
        self._held += text
        self._num_read += len(text)
        found = self._first_found()
        if found and found.start <= self._first_open():
            return self._finish(found)
        # A stop that is complete waits for one that began before it and is still open.
        return self._release(self._first_open())

    def flush(self) -> str:
        """The rest, when no more text will come; up to a stop that had waited, see `matched`."""
        found = self._first_found()
        return self._finish(found) if found else self._release(self._num_read)

    def _first_found(self) -> _StopProgress | None:
        found = [stop for stop in self._stops if stop.is_found]
        return min(found, key=lambda stop: (stop.start, len(stop.text)), default=None)

    def _first_open(self) -> int:
        """Where the earliest stop begins that may be completed yet; the end if there is none."""
        return min(
            (stop.start for stop in self._stops if not stop.is_found), default=self._num_read
        )

    def _finish(self, found: _StopProgress) -> str:
        self._matched = found.text
        safe = self._release(found.start)
        self._held = ""
        return safe

    def _release(self, end: int) -> str:
        """Text up to position `end`, which is not held any more."""
        size = len(self._held) - (self._num_read - end)
        safe, self._held = self._held[:size], self._held[size:]
        return safe


class _StopProgress:
    """How much of one stop string the text ends in (Knuth, Morris and Pratt's matching)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.start = 0  # position in the text where the stop, or its open beginning, begins
        self._num_matched = 0
        self._fallback = _fallbacks(text)

    @property
    def is_found(self) -> bool:
        return self._num_matched == len(self.text)

    def advance(self, piece: str, position: int) -> None:
        """Reads `piece`, which begins at `position`, up to the first full match."""
        if self.is_found:
            return
        matched = self._num_matched
        for offset, letter in enumerate(piece, position + 1):
            while matched and self.text[matched] != letter:
                matched = self._fallback[matched]
            matched += self.text[matched] == letter
            if matched == len(self.text):
                self._num_matched, self.start = matched, offset - matched
                return
        self._num_matched, self.start = matched, position + len(piece) - matched


def _fallbacks(text: str) -> list[int]:
    """For each n: the length of the longest proper end of text[:n] that the text begins with."""
    fallback = [0, 0]
    for letter in text[1:]:
        length = fallback[-1]
        while length and text[length] != letter:
            length = fallback[length]
        fallback.append(length + (text[length] == letter))
    return fallback
