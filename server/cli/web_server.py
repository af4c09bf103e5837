"""Runs the application under uvicorn, and ends it soon after a signal, whatever it is doing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from types import FrameType

import uvicorn

from server.access.http_protocol import protocol_with_timeout
from server.app import create_app
from server.cli.allocator import keep_heap_small
from server.cli.folders import states_remark
from server.logs import configure_logging
from server.settings import Settings
from server.settings.sources import remarks

log = logging.getLogger("anser.server")

# How long replies in flight get to send their last line.
_GRACE_S = 1
# For the pass that the model is in, which cannot be interrupted, and then for writing the states
# that are not on disk yet, which a server that stops gives three seconds. Most often both take
# none. With the grace it is less than the five seconds that a server may take to end.
_LAST_S = 3.8
_KEEP_CONNECTION_S = 120


def serve(settings: Settings, listener: socket.socket, *, is_child: bool) -> bool:
    """Serve on `listener` until a signal, as a child also until standard input ends.

    Returns whether it served at all; why it did not is in the log then.
    """
    configure_logging(is_debug=settings.is_debug)
    if not (settings.listens_on_loopback or settings.api_keys):
        log.warning("everyone who reaches this address may call; ANSER_API_KEY keeps others out")
    for each in remarks():
        log.info("%s", each)
    if (remark := states_remark(settings.states)) is not None:
        log.warning("%s", remark)
    keep_heap_small()
    server = _Server(settings, _announcement(settings, is_child))
    if is_child:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    server.run(sockets=[listener])
    return server.started


class _Server(uvicorn.Server):
    """uvicorn, saying one line when it listens, and stopping generations before it stops itself."""

    def __init__(self, settings: Settings, announcement: str) -> None:
        app = create_app(settings)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_with_timeout(settings.request_timeout_s),
                ws="none",
                log_config=None,
                access_log=False,  # the application logs its requests itself
                timeout_keep_alive=_KEEP_CONNECTION_S,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._app = app
        self._announcement = announcement

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        watchdog = threading.Timer(_GRACE_S + _LAST_S, os._exit, (0,))
        watchdog.daemon = True
        watchdog.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._announcement, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # What is cut off now is cut off on purpose: no complaints in the log.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        # uvicorn waits for open connections first, and those wait for generations and downloads.
        context = self._app.state.context
        closing = asyncio.gather(context.manager.close(), context.registry.stop())
        await super().shutdown(sockets)
        await closing


def _announcement(settings: Settings, is_child: bool) -> str:
    url = replace(settings, scheme="http", path="").url
    if is_child:
        return url
    body = '{"model": "rwkv7-demo", "prompt": "Hello!"}'
    return (
        f"Anser listens on {url} with the models in {settings.models}. "
        f"Try: curl {url}/api/generate -d '{body}'"
    )


def _end_with_stdin() -> None:
    # Not sys.stdin: a thread that waits inside its lock would disturb the interpreter's end.
    descriptor = sys.stdin.fileno()
    while os.read(descriptor, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
