"""Pulls and pushes without a server, in small parts and without patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from server.registry.address import registry_url
from server.registry.limits import Limits
from server.registry.pull import pull
from server.registry.push import push
from server.registry.registry import Registry
from server.store.names import ModelName
from server.store.store import Store

Json = dict[str, Any]
_R = TypeVar("_R")

# A machine may be busy for minutes with other things, which says nothing about a transfer.
_PATIENCE_S = 300.0

QUICK = Limits(
    num_parallel=4,
    min_part=1 << 18,
    max_part=1 << 21,
    stall_s=_PATIENCE_S,
    num_attempts=3,
    first_wait_s=0.01,
    progress_s=0.01,
)


class Transfers:
    """A store and what brings models to it. To be used inside `run`."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def pull(self, name: str, **asked: bool) -> list[Json]:
        return [each async for each in self.pulling(name, **asked)]

    def pulling(self, name: str, *, insecure: bool = False) -> AsyncGenerator[Json]:
        parsed = ModelName.parse(name)
        return pull(self.registry, parsed, registry_url(name, parsed, is_insecure=insecure))

    async def push(self, name: str) -> list[Json]:
        parsed = ModelName.parse(name)
        url = registry_url(name, parsed, is_insecure=False)
        return [each async for each in push(self.registry, parsed, url, name)]


def run(
    store: Store,
    work: Callable[[Transfers], Coroutine[Any, Any, _R]],
    *,
    limits: Limits = QUICK,
    free_bytes: Callable[[Path], int] | None = None,
    key_file: Path | None = None,
) -> _R:
    """What `work` returns, in an event loop of its own."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[Transfers]:
        registry = Registry(
            store, limits=limits, free_bytes=free_bytes, key_file=key_file or store.root / "no-key"
        )
        try:
            yield Transfers(registry)
        finally:
            await registry.close()

    async def whole() -> _R:
        async with opened() as transfers:
            return await asyncio.wait_for(work(transfers), _PATIENCE_S)

    return asyncio.run(whole())


def pull_once(store: Store, name: str, **how: Any) -> list[Json]:
    return run(store, lambda transfers: transfers.pull(name), **how)


def push_once(store: Store, name: str, **how: Any) -> list[Json]:
    return run(store, lambda transfers: transfers.push(name), **how)
