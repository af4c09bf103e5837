"""Which models are in memory: loaded on demand, kept for a while, never unloaded while in use.

Everything here runs on the event loop; loading and unloading themselves run in threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import torch

from rwkv_core import load_model
from rwkv_core.cache import DiskTier, ModelKey, Numerics, StateCache
from rwkv_core.cache.defaults import disk_budget, memory_budget
from rwkv_core.engine import Engine
from rwkv_core.errors import AnserError, CheckpointError, EngineStoppedError
from rwkv_core.memory import available_bytes
from rwkv_core.model import Model
from rwkv_core.scheduler import default_num_slots
from server.durations import FOREVER_NS
from server.errors import ApiError
from server.manifests import MODEL_TYPE
from server.metrics import ServerMetrics, note_model
from server.prompt_tokens import TextEncoder
from server.settings import Settings
from server.stored_model import StoredModel

log = logging.getLogger(__name__)

_SECOND_NS = 1_000_000_000
# How long a server that stops writes states that are not on disk yet.
_LAST_WRITES_S = 5.0


@dataclass
class LoadedModel:
    """A model in memory with its engine."""

    stored: StoredModel
    model: Model
    engine: Engine
    cache: StateCache
    encoder: TextEncoder
    metrics: ServerMetrics  # of the server
    state_bytes: int  # of one sequence
    keep_alive_ns: int
    idle_since_ns: int | None = None  # wall clock; None while a request uses the model
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def num_bytes(self) -> int:
        """Memory that its weights take."""
        return self.model.num_weight_bytes

    @property
    def expires_at_ns(self) -> int:
        """When it goes, or would go if its requests ended now."""
        return (self.idle_since_ns or time.time_ns()) + self.keep_alive_ns


class ModelManager:
    """Owns the loaded models.

    Models are told apart by the digest of their file, so names can share one.
    """

    def __init__(self, settings: Settings) -> None:
        self.metrics = ServerMetrics()
        self._settings = settings
        self._opening_states = threading.Lock()  # guards the next
        self._states: DiskTier | None = None  # opened with the first model
        self._loaded: dict[str, LoadedModel] = {}
        self._loading: dict[str, asyncio.Task[LoadedModel]] = {}
        self._num_uses: Counter[str] = Counter()  # requests that use a model or wait for it
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def loaded(self) -> list[LoadedModel]:
        """What is in memory, longest to live first."""
        return sorted(self._loaded.values(), key=lambda each: each.expires_at_ns, reverse=True)

    @property
    def disk_tier(self) -> DiskTier | None:
        """The states on disk; None before a model has been loaded, or when none are kept."""
        return self._states

    @asynccontextmanager
    async def use(
        self, stored: StoredModel, keep_alive_ns: int | None = None
    ) -> AsyncIterator[LoadedModel]:
        """The loaded model, for as long as the block runs. Concurrent calls load it once.

        Raises ApiError (500) naming the model when it cannot be loaded.
        """
        key = _key(stored)
        self._num_uses[key] += 1
        try:
            loaded = await self._get(stored)
            loaded.stored = stored  # the name last asked for is the one that is shown
            note_model(stored.name.shortest)
            if keep_alive_ns is not None:
                loaded.keep_alive_ns = keep_alive_ns
            self._stop_clock(loaded)
            yield loaded
        finally:
            self._num_uses[key] -= 1
            self._start_clock(key)

    def unload(self, stored: StoredModel) -> None:
        """Lets go of the model now, or when the requests that use it are done."""
        loaded = self._loaded.get(_key(stored))
        if loaded:
            loaded.keep_alive_ns = 0
            self._start_clock(_key(stored))

    async def close(self) -> None:
        """Stops every engine; requests in flight end with an error. States that wait to be written
        are, within a few seconds.
        """
        self._is_closed = True
        if self._loading:
            await asyncio.wait(self._loading.values())
        for loaded in list(self._loaded.values()):
            self._discard(loaded)
        await self._wait_for_closing()
        if self._states is not None:
            await asyncio.to_thread(self._states.close, _LAST_WRITES_S)

    async def _get(self, stored: StoredModel) -> LoadedModel:
        key = _key(stored)
        if self._is_closed:
            raise EngineStoppedError("the server is shutting down")
        loaded = self._loaded.get(key)
        if loaded and loaded.engine.is_healthy:
            return loaded
        if loaded:
            log.error("the engine of %s has died; loading the model again", stored.name.shortest)
            self._discard(loaded)
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load(stored), name=f"load {stored.name.shortest}")
            self._loading[key] = task
            task.add_done_callback(lambda _: self._loading.pop(key))
        # Shielded: a client that goes away while it waits does not stop the load for the others.
        return await asyncio.shield(task)

    async def _load(self, stored: StoredModel) -> LoadedModel:
        await self._wait_for_closing()  # two models may not fit at once
        name = stored.name.shortest
        start = time.monotonic()
        device = _resolve_device(self._settings.device)
        try:
            model = await asyncio.to_thread(load_model, stored.path, device=device)
        except CheckpointError as error:
            raise ApiError(500, f"unable to load model {name}: {error.problem}") from error
        except AnserError as error:
            raise ApiError(500, f"unable to load model {name}: {error}") from error
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            raise ApiError(
                500, f"unable to load model {name}: there is not enough memory"
            ) from error
        loaded = await asyncio.to_thread(self._start, stored, model)
        self._loaded[_key(stored)] = loaded
        self._start_clock(_key(stored))  # in case whoever asked for it is gone
        seconds, prompts = time.monotonic() - start, stored.prompt_format.name
        how = f"{device}, {model.executor.description}"
        log.info("loaded %s in %.2f s (%s); its prompts are %s", name, seconds, how, prompts)
        if stored.template:
            log.warning("%s has a TEMPLATE, which is not used yet", name)
        return loaded

    def _start(self, stored: StoredModel, model: Model) -> LoadedModel:
        """The engine of a model that is in memory, with the states that are kept for it."""
        settings = self._settings
        weights = stored.manifest.layer(MODEL_TYPE)
        assert weights is not None  # the model was read from it
        numerics = Numerics.of(model.executor)
        key = ModelKey.of(weights.digest, model.tokenizer, None, numerics)
        available = available_bytes()
        cache = StateCache(
            key, settings.states_memory or memory_budget(available), self._open_states()
        )
        state_bytes = model.new_state().nbytes
        num_slots = settings.num_parallel or default_num_slots(
            state_bytes, available, is_gpu=model.device.type != "cpu"
        )
        engine = Engine(model, cache=cache, num_slots=num_slots, max_queue=settings.max_queue)
        self.metrics.caches.add(cache)
        encoder = TextEncoder(model.tokenizer)
        return LoadedModel(
            stored,
            model,
            engine,
            cache,
            encoder,
            self.metrics,
            state_bytes,
            settings.keep_alive_ns,
        )

    def _open_states(self) -> DiskTier | None:
        """The states on disk, of all models; None when they are to be kept in memory only."""
        folder = self._settings.states
        if folder is None:
            return None
        with self._opening_states:
            if self._states is None:
                budget = self._settings.states_disk or disk_budget(folder)
                self._states = DiskTier(folder, budget)
            return self._states

    def _start_clock(self, key: str) -> None:
        """Lets a model that nobody uses expire, at once when it is not to be kept."""
        loaded = self._loaded.get(key)
        if loaded is None or self._num_uses[key]:
            return
        self._stop_clock(loaded)
        loaded.idle_since_ns = time.time_ns()
        if loaded.keep_alive_ns <= 0:
            self._discard(loaded)
        elif loaded.keep_alive_ns < FOREVER_NS:
            seconds = loaded.keep_alive_ns / _SECOND_NS
            loop = asyncio.get_running_loop()
            loaded.timer = loop.call_later(seconds, self._discard, loaded)

    def _stop_clock(self, loaded: LoadedModel) -> None:
        loaded.idle_since_ns = None
        if loaded.timer:
            loaded.timer.cancel()
            loaded.timer = None

    def _discard(self, loaded: LoadedModel) -> None:
        self._stop_clock(loaded)
        key = _key(loaded.stored)
        if self._loaded.get(key) is loaded:
            del self._loaded[key]
        task = asyncio.create_task(asyncio.to_thread(_close, loaded))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        log.info("unloaded %s", loaded.stored.name.shortest)

    async def _wait_for_closing(self) -> None:
        if self._closing:
            await asyncio.wait(set(self._closing))


def _close(loaded: LoadedModel) -> None:
    loaded.engine.close()
    loaded.metrics.caches.retire(loaded.cache)


def _key(stored: StoredModel) -> str:
    return str(stored.path)


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
