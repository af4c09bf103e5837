"""`/api/push`: a model from the store into a registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.creating.jobs import Json
from server.registry.client import RegistryClient, persistently
from server.registry.errors import UnauthorizedError
from server.registry.limits import Limits
from server.registry.manifest import distinct_layers, manifest_path
from server.registry.progress import follow, status, transfer
from server.registry.registry import Registry
from server.registry.tasks import end_all
from server.registry.upload import BlobUpload
from server.store.manifests import MANIFEST_TYPE, DamagedModelError, Manifest, parse_manifest
from server.store.names import ModelName
from server.store.short_names import find_name
from server.store.store import Store
from server.wire.errors import model_not_found


async def push(registry: Registry, name: ModelName, url: str, asked: str) -> AsyncGenerator[Json]:
    """Sends `name`, which the client calls `asked`, to the registry at `url`.

    Yields progress objects, "success" the last; closing it ends the transfer. Raises ApiError (404)
    for a model that is not there, DamagedModelError, and RegistryError.
    """
    yield status("retrieving manifest")
    try:
        found = await registry.disk.run(_read, registry.store, name)
    except DamagedModelError as error:
        raise DamagedModelError(f"{name.shortest}: {error}; create or pull it again") from error
    if found is None:
        yield status("couldn't retrieve manifest")
        raise model_not_found(asked)
    stored, manifest, data = found
    client = registry.client(url)
    try:
        for layer in (*distinct_layers(manifest)[1:], manifest.config):
            upload = BlobUpload(
                client,
                stored,
                layer,
                registry.store.blob_path(layer.digest),
                registry.limits,
                registry.disk,
            )
            async with aclosing(_send(upload, registry.limits.progress_s)) as counts:
                async for completed in counts:
                    yield transfer("pushing", layer.digest, layer.size, completed)
        yield status("pushing manifest")
        await _put_manifest(client, stored, data, registry.limits)
    except UnauthorizedError as error:
        raise UnauthorizedError(
            f"{error}; you may push to a namespace of your own, with the key ~/.ollama/id_ed25519 "
            "(ssh-keygen -t ed25519 -N '' makes one) known to the registry"
        ) from error
    yield status("success")


def _read(store: Store, name: ModelName) -> tuple[ModelName, Manifest, bytes] | None:
    """The manifest and its file. Raises DamagedModelError, also for a blob that is missing."""
    stored = find_name(store, name)
    manifest = store.read_manifest(stored) if stored else None
    if stored is None or manifest is None:
        return None
    for layer in distinct_layers(manifest):
        path = store.blob_path(layer.digest)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DamagedModelError(f"its blob {path.name}: {error.strerror}") from error
        if size != layer.size:
            raise DamagedModelError(f"its blob {path.name} has another size than it should")
    try:
        data = store.manifest_path(stored).read_bytes()
    except OSError as error:
        raise DamagedModelError(f"its manifest: {error.strerror}") from error
    return stored, parse_manifest(data, 0), data


async def _send(upload: BlobUpload, period_s: float) -> AsyncGenerator[int]:
    """Uploads, and yields how many bytes have gone. Raises what the upload raises."""
    task = asyncio.create_task(upload.run())
    try:
        async with aclosing(follow({task}, lambda: upload.completed, period_s)) as counts:
            async for completed in counts:
                yield completed
        await task
    finally:
        await end_all([task])


async def _put_manifest(
    client: RegistryClient, name: ModelName, data: bytes, limits: Limits
) -> None:
    async def body() -> AsyncGenerator[bytes]:
        yield data

    async def put() -> None:
        headers = {"Content-Type": MANIFEST_TYPE, "Content-Length": str(len(data))}
        async with client.stream(
            "PUT", manifest_path(name), headers=headers, body=body, timeout_s=limits.digest_s
        ):
            pass

    await persistently(put, limits, limits.num_attempts)
