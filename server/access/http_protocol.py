"""HTTP/1.1 as uvicorn speaks it, with an end to waiting for a request's headers."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol_with_timeout(seconds: float) -> type[H11Protocol]:
    """The protocol for uvicorn's `http`: it closes connections whose headers take longer."""
    return type("TimedProtocol", (_TimedProtocol,), {"headers_timeout_s": seconds})


class _TimedProtocol(H11Protocol):
    """uvicorn itself ends connections that are idle after a request, and only those."""

    headers_timeout_s: float

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Begins or ends the wait, as headers are outstanding or not; no data prolongs it."""
        is_outstanding = self.conn.their_state is h11.IDLE and (
            self.cycle is None or bool(self.conn.trailing_data[0])
        )
        if not is_outstanding or self.transport.is_closing():
            self._stop_watch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.headers_timeout_s, self._give_up)

    def _stop_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.close()
