"""`/api/pull`: a model from its registry into the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from server.creating.jobs import Json
from server.human import human_bytes
from server.registry.client import RegistryClient
from server.registry.errors import LyingError, RegistryError
from server.registry.manifest import check_family, distinct_layers, fetch_manifest
from server.registry.partial_file import partial_bytes
from server.registry.progress import follow, status, transfer
from server.registry.registry import Registry, SharedDownload
from server.store.manifests import DamagedModelError, Layer, Manifest
from server.store.names import ModelName
from server.store.pruning import digests_of, remove_unused_blobs
from server.store.store import Store, StoreError
from server.store.stored_model import ForeignModelError, read_model
from server.wire.errors import ApiError

PULLED = status("success")


async def pull(registry: Registry, name: ModelName, url: str) -> AsyncGenerator[Json]:
    """Brings `name` from the registry at `url`; yields progress objects, "success" the last.

    Closing it ends the downloads that nobody else waits for; what has arrived stays to be resumed.
    Nothing is registered unless all of it is there and right. Raises RegistryError, StoreError, and
    ApiError (400) for a model that Anser cannot run, where possible before it is downloaded.
    """
    yield status("pulling manifest")
    store, run = registry.store, registry.disk.run
    name = await run(_stored_or_same, store, name)
    client = registry.client(url)
    data, manifest = await fetch_manifest(client, name, registry.limits)
    config, *others = distinct_layers(manifest)
    async with AsyncExitStack() as stack:
        blobs = _Blobs(registry, client, name, stack)
        await run(_check_space, registry, name, [config, *others])
        async with aclosing(blobs.fetch(config)) as steps:
            async for step in steps:
                yield step
        await blobs.finish()
        await run(_check_family, registry.store, name, manifest)
        for layer in others:
            async with aclosing(blobs.fetch(layer)) as steps:
                async for step in steps:
                    yield step
        yield status("verifying sha256 digest")
        await blobs.finish()
        await run(_check_model, registry.store, name, manifest, blobs.new)
    yield status("writing manifest")
    old = await run(lambda: set(digests_of(store, name)))
    await run(store.write_manifest_file, name, data)
    unused = old - {layer.digest for layer in (config, *others)}
    if unused:
        yield status("removing unused layers")
        await run(remove_unused_blobs, store, unused)
    yield PULLED


class _Blobs:
    """The blobs of one pull: those that are there, and downloads as long as `stack` is open."""

    def __init__(
        self, registry: Registry, client: RegistryClient, name: ModelName, stack: AsyncExitStack
    ) -> None:
        self.new: list[str] = []  # digests of what was not there before
        self._registry = registry
        self._client = client
        self._name = name
        self._stack = stack
        self._downloads: list[SharedDownload] = []

    async def fetch(self, layer: Layer) -> AsyncGenerator[Json]:
        """Progress until all of the blob has arrived; `finish` waits until it is verified too."""
        while not await self._registry.disk.run(_is_stored, self._registry.store, layer):
            shared = await self._stack.enter_async_context(
                self._registry.downloading(self._client, self._name, layer)
            )
            async with aclosing(self._follow(shared)) as counts:
                async for completed in counts:
                    yield transfer("pulling", layer.digest, layer.size, completed)
            if not shared.task.done():
                self._downloads.append(shared)
                self.new.append(layer.digest)
                return
            error = _failure(shared)
            # That another pull's registry has failed says nothing about ours.
            if error is not None and shared.download.client.url == self._client.url:
                raise error
        yield transfer("pulling", layer.digest, layer.size, layer.size)

    async def finish(self) -> None:
        """Until every blob is verified and stored."""
        for shared in self._downloads:
            # It belongs to all who wait for it: when this one is cancelled it goes on.
            await asyncio.wait({shared.task})
            if error := _failure(shared):
                raise error
        self._downloads.clear()

    async def _follow(self, shared: SharedDownload) -> AsyncGenerator[int]:
        """How many bytes have arrived, until all have or the download fails."""
        arrival = asyncio.create_task(shared.download.has_arrived.wait())
        counts = follow(
            {arrival, shared.task},
            lambda: shared.download.completed,
            self._registry.limits.progress_s,
        )
        try:
            async with aclosing(counts):
                async for completed in counts:
                    yield completed
        finally:
            arrival.cancel()


def _failure(shared: SharedDownload) -> BaseException | None:
    """What a download that has ended failed with."""
    if shared.task.cancelled():
        return RegistryError("the server is stopping")
    return shared.task.exception()


def _is_stored(store: Store, layer: Layer) -> bool:
    """Whether the blob is there, with the size that the manifest says."""
    try:
        return store.blob_path(layer.digest).stat().st_size == layer.size
    except OSError:
        return False


def _check_space(registry: Registry, name: ModelName, layers: Sequence[Layer]) -> None:
    """Raises StoreError when the disk has no room for what is missing."""
    store = registry.store
    needed = sum(
        layer.size - partial_bytes(store, layer.digest, layer.size)
        for layer in layers
        if not _is_stored(store, layer)
    )
    folder = store.root / "blobs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = registry.free_bytes(folder)
    except OSError as error:
        raise store.unwritable(error) from error
    if needed > free:
        raise StoreError(
            f"not enough disk space: {name.shortest} needs {human_bytes(needed)} in {store.root}, "
            f"and {human_bytes(free)} are free there; make room, or set OLLAMA_MODELS to another "
            "disk"
        )


def _check_family(store: Store, name: ModelName, manifest: Manifest) -> None:
    """Raises ApiError (400) for a model that Anser cannot run, as far as its config says it."""
    path = store.blob_path(manifest.config.digest)
    try:
        check_family(name, manifest, path)
    except ForeignModelError as error:
        remove_unused_blobs(store, [manifest.config.digest])
        raise ApiError(400, str(error)) from error


def _check_model(store: Store, name: ModelName, manifest: Manifest, new: Sequence[str]) -> None:
    """Opens the model before it has a name. One that is of no use does not stay on the disk."""
    try:
        for layer in distinct_layers(manifest):
            if not _is_stored(store, layer):
                raise LyingError(f"the manifest gives {layer.digest} another size than it has")
        read_model(store, name, manifest)
    except ForeignModelError as error:
        remove_unused_blobs(store, new)
        raise ApiError(400, str(error)) from error
    except (DamagedModelError, LyingError) as error:
        remove_unused_blobs(store, new)
        raise RegistryError(f"{name.shortest} is damaged in its registry: {error}") from error


def _stored_or_same(store: Store, name: ModelName) -> ModelName:
    """The name in the case it is stored under, if it is."""
    return store.canonical_name(name) or name
