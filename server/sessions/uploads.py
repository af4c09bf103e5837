"""Receives the file of a session: a body of many megabytes, from a client that need not be kind.

What a client may hold while it sends is bounded in bytes, in time, and by how many do it at once.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

from starlette.requests import ClientDisconnect

from server.sessions.threads import to_the_end
from server.wire.errors import CLIENT_CLOSED_REQUEST, ApiError

# The state of a model three times as large as any that there is, with a million tokens.
MAX_FILE_BYTES = 256 << 20
# Files that are being received at once: of the largest, 2 GB of disk.
MAX_UPLOADS = 8

# A megabyte may take a minute, also on a bad line; who is slower, or silent, is cut off.
_PIECE_BYTES = 1 << 20
PIECE_TIMEOUT_S = 60.0


class SlowUploadError(ApiError):
    """A client sends too slowly, or has stopped without going away."""


class Uploads:
    """The files that are being received. Used on the event loop."""

    def __init__(
        self, piece_timeout_s: float = PIECE_TIMEOUT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._piece_timeout_s = piece_timeout_s
        self._clock = clock
        self._num_open = 0

    @contextmanager
    def file(self, folder: Path | None) -> Iterator[BufferedRandom]:
        """A file that is gone once the block ends, with the process too: in `folder`, beside the
        states, if it may. Raises ApiError (503) when too many are being received.
        """
        if self._num_open >= MAX_UPLOADS:
            raise ApiError(503, "too many saved states are being sent; try again later")
        self._num_open += 1
        try:
            with _temporary_file(folder) as file:
                yield file
        finally:
            self._num_open -= 1

    async def receive(self, body: AsyncIterator[bytes], length: str, file: BufferedRandom) -> int:
        """Writes a body into a file; how many bytes it has. `length` is what the header says.

        Raises ApiError: 413 for one that is too large, 408 for a client that is too slow, 499 for
        one that has gone, 507 where there is no room.
        """
        if length.isdecimal() and int(length) > MAX_FILE_BYTES:
            raise _too_large()
        num_bytes = 0
        try:
            while piece := await self._piece(body):
                num_bytes += len(piece)
                if num_bytes > MAX_FILE_BYTES:
                    raise _too_large()
                await to_the_end(file.write, piece)
        except ClientDisconnect:
            raise ApiError(CLIENT_CLOSED_REQUEST, "request canceled") from None
        except OSError as error:
            problem = f"there is no room for the saved state: {error.strerror}"
            raise ApiError(507, problem) from error
        return num_bytes

    async def _piece(self, body: AsyncIterator[bytes]) -> bytes:
        """A megabyte, or a little more; less at the end of the body, and then nothing."""
        deadline = self._clock() + self._piece_timeout_s
        piece = bytearray()
        while len(piece) < _PIECE_BYTES:
            try:
                part = await asyncio.wait_for(anext(body, None), max(deadline - self._clock(), 0))
            except asyncio.TimeoutError:
                raise SlowUploadError(
                    408,
                    f"the saved state came too slowly: less than {_PIECE_BYTES >> 20} MB in "
                    f"{self._piece_timeout_s:g} s; send it again",
                ) from None
            if part is None:
                break
            piece += part
        return bytes(piece)


def _temporary_file(folder: Path | None) -> BufferedRandom:
    try:
        if folder is not None and folder.is_dir():
            return tempfile.TemporaryFile(dir=folder)
    except OSError:
        pass
    return tempfile.TemporaryFile()


def _too_large() -> ApiError:
    return ApiError(413, f"a saved state has at most {MAX_FILE_BYTES >> 20} MB")
