"""One blob from a registry into the store: parts at once, resumed, verified."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx

from server.registry.address import repository_path
from server.registry.client import RegistryClient, wait_s
from server.registry.errors import (
    LyingError,
    RangesIgnoredError,
    RegistryError,
    TemporaryError,
)
from server.registry.limits import Limits
from server.registry.partial_file import PartialFile
from server.registry.parts import Part
from server.registry.tasks import DiskThreads, run_all
from server.store.names import ModelName
from server.store.store import DigestMismatchError, Store

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
# What has come is written when it is so much, or has waited so long: a break loses no more.
_WRITE_BYTES = 1 << 20
_WRITE_S = 0.5


class BlobDownload:
    """The download of the blob `digest` ("sha256:HEX") of `size` bytes; `run` does it, once."""

    def __init__(
        self,
        store: Store,
        client: RegistryClient,
        name: ModelName,
        digest: str,
        size: int,
        limits: Limits,
        disk: DiskThreads,
    ) -> None:
        self.digest = digest
        self.size = size
        self.client = client
        self.has_arrived = asyncio.Event()  # every byte is there, perhaps not the right one
        self._store = store
        self._url = f"{repository_path(name)}/blobs/{digest}"
        self._limits = limits
        self._disk = disk
        self._partial: PartialFile | None = None

    @property
    def completed(self) -> int:
        """How many bytes are on disk."""
        if self.has_arrived.is_set():
            return self.size
        return self._partial.completed if self._partial else 0

    async def run(self) -> None:
        """Makes the blob one of the store. When cancelled, what is there stays to be resumed.

        Raises RegistryError, after deleting what a registry that lies has sent, and StoreError.
        """
        was_begun = await self._attempt(is_last=False)
        if was_begun:
            # The part that was there before may have been the wrong one: the disk's or ours.
            await self._attempt(is_last=True)

    async def _attempt(self, *, is_last: bool) -> bool:
        """Whether another attempt, from nothing, may succeed where this one has not."""
        self._partial = partial = PartialFile(self._store, self.digest, self.size, self._limits)
        try:
            await self._disk.run(partial.open)
            await self._fetch(partial)
            self.has_arrived.set()
            await self._disk.run(self._adopt, partial)
        except DigestMismatchError as error:
            if partial.was_begun and not is_last:
                self.has_arrived.clear()
                return True
            raise RegistryError(
                f"{self.client.host} sent damaged data: {error}; nothing of it is kept"
            ) from error
        except LyingError:
            await self._disk.run(partial.discard)
            raise
        finally:
            self._partial = None
            partial.close()
        return False

    def _adopt(self, partial: PartialFile) -> None:
        partial.remove_notes()
        self._store.adopt(partial.path, expected_digest=self.digest)

    async def _fetch(self, partial: PartialFile) -> None:
        missing = [part for part in partial.parts if not part.is_done]
        gate = asyncio.Semaphore(self._limits.num_parallel)
        try:
            await run_all(self._fetch_part(partial, part, gate) for part in missing)
        except RangesIgnoredError:
            await self._disk.run(partial.replan, max(self.size, 1))
            await self._fetch_part(partial, partial.parts[0], gate)

    async def _fetch_part(self, partial: PartialFile, part: Part, gate: asyncio.Semaphore) -> None:
        """Fetches a part, in as many attempts as make progress and a few that do not."""
        async with gate:
            num_failed = 0
            while not part.is_done:
                before = part.completed
                try:
                    await self._fetch_once(partial, part)
                except TemporaryError as error:
                    num_failed = 0 if part.completed > before else num_failed + 1
                    if num_failed >= self._limits.num_attempts:
                        raise TemporaryError(f"max retries exceeded: {error}") from error
                    await asyncio.sleep(wait_s(self._limits, max(num_failed - 1, 0)))

    async def _fetch_once(self, partial: PartialFile, part: Part) -> None:
        headers = {"Range": f"bytes={part.start}-{part.end - 1}"}
        async with (
            self.client.stream("GET", self._url, headers=headers) as response,
            aclosing(_in_pieces(response)) as pieces,
        ):
            surplus = self._check(response, partial, part)
            async for data in pieces:
                kept = data[surplus:]
                surplus = max(surplus - len(data), 0)
                if len(kept) > part.size - part.completed:
                    raise LyingError(f"{self._who} sends more than the manifest says")
                if kept:
                    await self._disk.run(partial.write, part, kept)
        if not part.is_done:
            raise TemporaryError(f"{self._who} ends early")

    def _check(self, response: httpx.Response, partial: PartialFile, part: Part) -> int:
        """How many bytes at the beginning of the answer are there already.

        Raises RegistryError for an answer that contradicts the manifest, RangesIgnoredError for the
        whole blob where a part was asked for.
        """
        if response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if match is None or int(match[1]) != part.start or int(match[2]) >= part.end:
                raise LyingError(f"{self._who} sends another part than the one asked for")
            self._check_size(match[3])
            return 0
        if response.status_code != 200:
            raise RegistryError(f"{self._who} answers {response.status_code}")
        self._check_size(response.headers.get("content-length", "*"))
        if len(partial.parts) > 1:
            raise RangesIgnoredError(f"{self._who} knows no ranges")
        return part.completed

    def _check_size(self, size: str) -> None:
        if size.isdecimal() and int(size) != self.size:
            raise LyingError(f"{self._who} has {size} bytes where the manifest says {self.size}")

    @property
    def _who(self) -> str:
        return f"{self.client.host}: blob {short_digest(self.digest)}"


def short_digest(digest: str) -> str:
    """The first 12 digits, which stand for a blob in what people read."""
    return digest.removeprefix("sha256:")[:12]


async def _in_pieces(response: httpx.Response) -> AsyncGenerator[bytes]:
    """The body in pieces worth a write; what has come when it breaks comes before the error."""
    data = bytearray()
    since = time.monotonic()
    try:
        async for piece in response.aiter_raw():
            data += piece
            if len(data) >= _WRITE_BYTES or time.monotonic() - since >= _WRITE_S:
                yield bytes(data)
                data.clear()
                since = time.monotonic()
    except (httpx.HTTPError, httpx.StreamError):
        if data:
            yield bytes(data)
        raise
    if data:
        yield bytes(data)
