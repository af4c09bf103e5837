"""What all pulls and pushes of a server share: connections, and downloads under way."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from server.access.loopback import is_loopback
from server.registry.auth import default_key_file
from server.registry.client import RegistryClient, new_http
from server.registry.download import BlobDownload
from server.registry.limits import Limits
from server.registry.tasks import DiskThreads, end_all
from server.store.manifests import Layer
from server.store.names import ModelName
from server.store.store import Store


@dataclass
class SharedDownload:
    """A download and how many pulls wait for it; it ends when the last of them leaves."""

    download: BlobDownload
    task: asyncio.Task[None]
    num_users: int = 0
    is_ending: bool = False


class Registry:
    """Belongs to one event loop. `free_bytes` says how much room there is on a folder's disk."""

    def __init__(
        self,
        store: Store,
        *,
        limits: Limits | None = None,
        free_bytes: Callable[[Path], int] | None = None,
        key_file: Path | None = None,
    ) -> None:
        self.store = store
        self.limits = limits or Limits()
        self.free_bytes = free_bytes or _free_bytes
        self.disk = DiskThreads()
        self._key_file = key_file or default_key_file()
        self._https: dict[bool, httpx.AsyncClient] = {}
        self._downloads: dict[str, SharedDownload] = {}

    def client(self, url: str) -> RegistryClient:
        """For one pull or push: it has a token of its own."""
        is_local = is_loopback(httpx.URL(url).host)
        http = self._https.get(is_local)
        if http is None:
            http = self._https[is_local] = new_http(self.limits, is_local=is_local)
        return RegistryClient(http, url, self._key_file)

    @asynccontextmanager
    async def downloading(
        self, client: RegistryClient, name: ModelName, layer: Layer
    ) -> AsyncIterator[SharedDownload]:
        """The one download of the layer's blob, begun if there is none, as long as the block lasts.

        It may be from another registry than `client`'s, where another pull has begun it.
        """
        while (shared := self._downloads.get(layer.digest)) and shared.is_ending:
            await asyncio.wait({shared.task})  # its file is still held
        if shared is None or shared.task.done():
            download = BlobDownload(
                self.store, client, name, layer.digest, layer.size, self.limits, self.disk
            )
            shared = SharedDownload(download, asyncio.create_task(download.run()))
            self._downloads[layer.digest] = shared
        shared.num_users += 1
        try:
            yield shared
        finally:
            shared.num_users -= 1
            if not shared.num_users:
                shared.is_ending = True
                try:
                    await end_all([shared.task])
                finally:
                    if self._downloads.get(layer.digest) is shared:
                        del self._downloads[layer.digest]

    def num_users(self, digest: str) -> int:
        """How many pulls wait for the blob now."""
        shared = self._downloads.get(digest)
        return shared.num_users if shared else 0

    def completed(self, digest: str) -> int:
        """How many bytes of the blob have arrived, while it is downloaded."""
        shared = self._downloads.get(digest)
        return shared.download.completed if shared else 0

    async def stop(self) -> None:
        """Ends every download; what has arrived stays to be resumed."""
        await end_all([each.task for each in self._downloads.values()])

    async def close(self) -> None:
        """Ends every download and lets go of connections and threads."""
        await self.stop()
        for http in self._https.values():
            await http.aclose()
        self.disk.close()


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
