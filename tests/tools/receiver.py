"""Someone who listens to a generation."""

from __future__ import annotations

import threading

from rwkv_core.engine import Event, FailedEvent, FinishedEvent, TextEvent
from tests.tools.waiting import TIMEOUT_S


class Receiver:
    """A sink that keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._is_done = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, TextEvent):
            self._is_done.set()

    def wait(self) -> Event:
        assert self._is_done.wait(TIMEOUT_S), "no last event"
        return self.events[-1]

    def finished(self) -> FinishedEvent:
        event = self.wait()
        assert isinstance(event, FinishedEvent), event
        return event

    def failure(self) -> Exception:
        event = self.wait()
        assert isinstance(event, FailedEvent), event
        return event.error

    @property
    def texts(self) -> list[TextEvent]:
        return [event for event in self.events if isinstance(event, TextEvent)]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.texts)
