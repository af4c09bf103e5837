"""One blob from the store into a registry: asked for, mounted, or sent in chunks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx

from server.registry.address import repository_path
from server.registry.client import RegistryClient, persistently, wait_s
from server.registry.errors import LyingError, MissingError, RegistryError
from server.registry.limits import Limits
from server.registry.parts import Part, plan_parts
from server.registry.tasks import DiskThreads
from server.store.manifests import Layer
from server.store.names import InvalidNameError, ModelName

_R = TypeVar("_R")

_READ_BYTES = 1 << 20
_REDIRECTS = (307, 308)


class BlobUpload:
    """The upload of a layer's blob, which lies at `path`; `run` does it, once."""

    def __init__(
        self,
        client: RegistryClient,
        name: ModelName,
        layer: Layer,
        path: Path,
        limits: Limits,
        disk: DiskThreads,
    ) -> None:
        self.completed = 0  # bytes that the registry has, as far as is known
        self._client = client
        self._repository = repository_path(name)
        self._layer = layer
        self._path = path
        self._limits = limits
        self._disk = disk

    async def run(self) -> None:
        """Returns when the registry has the blob. Raises RegistryError."""
        if not await self._persistently(self._is_there):
            await self._upload()
        self.completed = self._layer.size

    async def _is_there(self) -> bool:
        try:
            async with self._client.stream(
                "HEAD", f"{self._repository}/blobs/{self._layer.digest}"
            ):
                return True
        except MissingError:
            return False

    async def _upload(self) -> None:
        """Sends the blob; an upload that the registry has forgotten is begun anew."""
        for number in range(self._limits.num_attempts):
            location = await self._persistently(self._begin)
            if location is None:
                return
            try:
                await self._send(location)
            except (MissingError, LyingError):  # it has forgotten, or has other bytes than we sent
                self.completed = 0
                await asyncio.sleep(wait_s(self._limits, number))
                continue
            return
        raise RegistryError(f"{self._client.host} forgets uploads before they are done")

    async def _begin(self) -> httpx.URL | None:
        """Where to send the blob; None where the registry had it in another model."""
        url = f"{self._repository}/blobs/uploads/"
        async with self._client.stream("POST", url, params=self._mount()) as response:
            return None if response.status_code == 201 else self._following(response)

    def _mount(self) -> dict[str, str]:
        if not self._layer.source:
            return {}
        try:
            source = ModelName.parse(self._layer.source)
        except InvalidNameError:
            return {}
        return {"mount": self._layer.digest, "from": f"{source.namespace}/{source.model}"}

    async def _send(self, location: httpx.URL) -> None:
        checksums = []
        for part in plan_parts(self._layer.size, self._limits.part_size(self._layer.size)):
            location, checksum = await self._persistently(partial(self._send_part, location, part))
            checksums.append(checksum)
        # What an object store calls the checksum of an upload in parts.
        md5 = hashlib.md5(b"".join(checksums), usedforsecurity=False).hexdigest()
        end = {"digest": self._layer.digest, "etag": f"{md5}-{len(checksums)}"}
        await self._persistently(partial(self._finish, location, end))

    async def _send_part(self, location: httpx.URL, part: Part) -> tuple[httpx.URL, bytes]:
        """Where the next part goes, and the MD5 of this one."""
        headers = {
            "Content-Range": f"{part.offset}-{part.end - 1}",
            # Where it can, the registry names an object store to send the part to instead.
            "X-Redirect-Uploads": "1",
        }
        async with self._sending("PATCH", location, part, headers) as (response, body):
            following = self._following(response)
            if response.status_code not in _REDIRECTS:
                return following, body.md5.digest()
            target = self._client.resolve(response, response.headers.get("location", ""))
        async with self._sending("PUT", target, part, {}) as (_, body):
            return following, body.md5.digest()

    @asynccontextmanager
    async def _sending(
        self, method: str, url: httpx.URL, part: Part, headers: Mapping[str, str]
    ) -> AsyncIterator[tuple[httpx.Response, _PartBody]]:
        body = _PartBody(self, part)
        all_headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(part.size),
            **headers,
        }
        async with self._client.stream(
            method, url, headers=all_headers, body=body.pieces, timeout_s=self._limits.digest_s
        ) as response:
            yield response, body

    async def _finish(self, location: httpx.URL, end: Mapping[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": "0"}
        async with self._client.stream(
            "PUT", location, headers=headers, params=end, timeout_s=self._limits.digest_s
        ):
            pass

    def _following(self, response: httpx.Response) -> httpx.URL:
        """Where the rest of the upload goes."""
        headers = response.headers
        location = headers.get("docker-upload-location") or headers.get("location", "")
        if not location:
            raise RegistryError(f"{self._client.host} does not say where to upload to")
        return self._client.resolve(response, location)

    async def _persistently(self, work: Callable[[], Awaitable[_R]]) -> _R:
        return await persistently(work, self._limits, self._limits.num_attempts)

    async def read(self, offset: int, size: int) -> bytes:
        """Of the blob. Raises RegistryError for a file that has become shorter."""

        def work() -> bytes:
            with self._path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        try:
            data = await self._disk.run(work)
        except OSError as error:
            raise RegistryError(f"{self._path}: {error.strerror}") from error
        if not data:
            raise RegistryError(f"{self._path} is shorter than its manifest says")
        return data


class _PartBody:
    """A part's bytes as the body of a request; `md5` is that of what was sent last."""

    def __init__(self, upload: BlobUpload, part: Part) -> None:
        self._upload = upload
        self._part = part
        self.md5 = hashlib.md5(usedforsecurity=False)

    async def pieces(self) -> AsyncGenerator[bytes]:
        self.md5 = hashlib.md5(usedforsecurity=False)
        offset = self._part.offset
        while offset < self._part.end:
            self._upload.completed = offset
            data = await self._upload.read(offset, min(_READ_BYTES, self._part.end - offset))
            self.md5.update(data)
            offset += len(data)
            yield data
        self._upload.completed = offset
