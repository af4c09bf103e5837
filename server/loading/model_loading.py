"""From a stored model to one that serves requests, and back: weights, engine, and states.

Names with the same weights and different initial states share the weights in memory; each has an
engine and a cache of its own, so that no state can serve the wrong name. Snapshots in memory have
one budget for all models, which follows the memory that is free.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rwkv_core import load_model
from rwkv_core.cache import (
    DiskTier,
    MemoryTier,
    ModelKey,
    Numerics,
    StateCache,
    TokenArray,
    write_evicted,
)
from rwkv_core.cache.defaults import disk_budget, memory_budget
from rwkv_core.engine import Engine
from rwkv_core.errors import AnserError, CheckpointError, ModelTooLargeError
from rwkv_core.executor import Executor
from rwkv_core.initial_state import read_initial_state
from rwkv_core.memory import available_bytes
from rwkv_core.model import Model
from rwkv_core.scheduler import default_num_slots
from rwkv_core.state import State
from server.go_template import TemplateError
from server.loading.model_slots import NoRoomError
from server.metrics import ServerMetrics
from server.replies.prompt_tokens import TextEncoder
from server.settings import Settings
from server.store.manifests import MODEL_TYPE
from server.store.stored_model import StoredModel
from server.wire.errors import ApiError

log = logging.getLogger(__name__)

# How long a server that stops writes states that are not on disk yet.
_LAST_WRITES_S = 3.0
# How long the weights of an engine that has ended may be in the hands of requests that end: of
# those that come to their end, and at most.
_HANDLERS_S = 0.2
_FREED_S = 5.0
# How long a deletion waits for the disk.
_FORGET_S = 10.0
# Of states that their chats have gone past, what memory keeps where the disk has them, too: enough
# for an edit or another try a few turns back. The rest would be memory that grows with every turn.
_SUPERSEDED_BYTES = 64 << 20


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
        """Memory that its weights take, whoever else uses them."""
        return self.model.num_weight_bytes

    @property
    def expires_at_ns(self) -> int:
        """When it goes, or would go if its requests ended now."""
        return (self.idle_since_ns or time.time_ns()) + self.keep_alive_ns

    def stop_clock(self) -> None:
        """It is in use, or going: it does not expire."""
        self.idle_since_ns = None
        if self.timer:
            self.timer.cancel()
            self.timer = None


def _prompts(stored: StoredModel) -> str:
    """How its prompts are made, for the log."""
    try:
        template = stored.chat_template
    except TemplateError as error:
        return f"impossible ({error})"
    if template is None:
        return stored.prompt_format.name
    return "its TEMPLATE" if template.text == stored.template else "its file's chat_template"


def model_key(stored: StoredModel) -> str:
    """What tells models in memory apart: the digests of their files, so names can share one."""
    return f"{stored.path} {stored.adapter or ''}".rstrip()


class ModelLoader:
    """Loads and unloads models: the `Keeper` of `ModelSlots`. One load runs at a time."""

    def __init__(self, settings: Settings, metrics: ServerMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._memory: MemoryTier | None = None
        self._disk: DiskTier | None = None
        self._guard = threading.Lock()  # of the two above
        # By file; a model in memory that goes takes itself out.
        self._models: weakref.WeakValueDictionary[tuple[Path, Path | None], Model] = (
            weakref.WeakValueDictionary()
        )

    @property
    def disk_tier(self) -> DiskTier | None:
        """The states on disk; None before a model has been loaded, or when none are kept."""
        return self._disk

    async def load(self, stored: StoredModel) -> LoadedModel:
        """Raises ApiError (500) that names the model, NoRoomError where memory is short."""
        start = time.monotonic()
        name = stored.name.shortest
        device = _resolve_device(self._settings.device)
        try:
            loaded = await asyncio.to_thread(self._load, stored, device)
        except ModelTooLargeError as error:
            raise NoRoomError(_unable(name, error.problem), error.missing) from error
        except CheckpointError as error:
            raise _unable(name, error.problem) from error
        except AnserError as error:
            raise _unable(name, str(error)) from error
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            raise NoRoomError(_unable(name, "there is not enough memory")) from error
        seconds, prompts = time.monotonic() - start, _prompts(stored)
        how = f"{device}, {loaded.model.executor.description}"
        log.info("loaded %s in %.2f s (%s); its prompts are %s", name, seconds, how, prompts)
        return loaded

    def is_usable(self, model: LoadedModel) -> bool:
        return model.engine.is_healthy

    async def unload(self, model: LoadedModel) -> None:
        """Stops the engine: requests in flight fail. Returns when the memory is free."""
        model.stop_clock()
        name, executor = model.stored.name.shortest, model.model.executor
        await asyncio.to_thread(model.engine.close)
        self._metrics.caches.retire(model.cache)
        model.cache.drop_memory()
        others = [each for each in self._models.values() if each is not model.model]
        is_shared = any(each.executor is executor for each in others)
        freed = _freed(executor)
        del model, executor, others
        if not is_shared and not await _within(freed, _HANDLERS_S):
            await asyncio.to_thread(gc.collect)  # errors and the frames they went through
            await _within(freed, _FREED_S)
        log.info("unloaded %s", name)
        await asyncio.to_thread(self._rebalance)

    def num_bytes(self, models: Collection[LoadedModel]) -> int:
        """Memory that is free without these: weights that some share count once."""
        executors = {id(each.model.executor): each.model.executor for each in models}
        of_states = sum(each.cache.statistics().num_bytes for each in models)
        return of_states + sum(each.num_weight_bytes for each in executors.values())

    def forget(self, beginning: TokenArray) -> None:
        """Deletes the states, of any model, behind texts that begin with these tokens."""
        memory, disk = self._open_states()
        # In this order: what leaves the memory is written, and what was forgotten there is not kept
        # again, wherever it comes from.
        memory.forget(beginning)
        if disk is not None and not disk.forget(beginning, _FORGET_S):
            log.warning("some states of what was deleted stay on disk until their turn comes")

    async def close(self) -> None:
        """After the last `unload`: states that wait to be written are, within a few seconds."""
        if self._disk is not None:
            await asyncio.to_thread(self._disk.close, _LAST_WRITES_S)

    def _load(self, stored: StoredModel, device: str) -> LoadedModel:
        settings = self._settings
        model = self._read(stored, device)
        weights = stored.manifest.layer(MODEL_TYPE)
        assert weights is not None  # the model was read from it
        numerics = Numerics.of(model.executor)
        key = ModelKey.of(weights.digest, model.tokenizer, model.initial_state, numerics)
        available = available_bytes()
        self._rebalance()
        memory, disk = self._open_states()
        if disk is not None and (num_foreign := disk.num_foreign(key)):
            log.info(
                "none of the %d states in %s is of %s as it is computed here: another model, "
                "version of Anser or processor made them; they stay until room is needed",
                num_foreign, disk.folder, stored.name.shortest,
            )  # fmt: skip
        cache = StateCache(key, memory, disk)
        self._metrics.caches.add(cache)
        state_bytes = State.nbytes_of(model.config)
        num_slots = settings.num_parallel or default_num_slots(
            state_bytes, available, is_gpu=model.device.type != "cpu"
        )
        engine = Engine(model, cache=cache, num_slots=num_slots, max_queue=settings.max_queue)
        encoder = TextEncoder(model.tokenizer)
        return LoadedModel(
            stored,
            model,
            engine,
            cache,
            encoder,
            self._metrics,
            state_bytes,
            settings.keep_alive_ns,
        )

    def _read(self, stored: StoredModel, device: str) -> Model:
        """The weights, shared where they are in memory already, and the initial state."""
        same = (each for (path, _), each in self._models.items() if path == stored.path)
        model = next(same, None) or load_model(stored.path, device=device)
        initial_state = None
        if stored.adapter is not None:
            try:
                initial_state = read_initial_state(stored.adapter, model.config)
            except CheckpointError as error:
                raise CheckpointError(stored.adapter, f"its ADAPTER {error.problem}") from error
        model = model.with_initial_state(initial_state)
        self._models[stored.path, stored.adapter] = model
        return model

    def _open_states(self) -> tuple[MemoryTier, DiskTier | None]:
        """The states of all models, in memory and, if they are to be kept there, on disk."""
        settings = self._settings
        with self._guard:
            if self._disk is None and settings.states is not None:
                budget = settings.states_disk or disk_budget(settings.states)
                self._disk = DiskTier(settings.states, budget)
            if self._memory is None:
                self._memory = _memory_tier(settings.states_memory or memory_budget(), self._disk)
            return self._memory, self._disk

    def _rebalance(self) -> None:
        """Makes the budget of the states in memory follow what is free, if nobody has set it."""
        memory, disk = self._memory, self._disk
        available = available_bytes()
        if memory is None or available is None or self._settings.states_memory:
            return
        write_evicted(memory.resize(memory_budget(available + memory.num_bytes)), disk)


def _memory_tier(budget: int, disk: DiskTier | None) -> MemoryTier:
    if disk is None or disk.budget < budget:  # it would lose what the memory has room for
        return MemoryTier(budget)
    return MemoryTier(
        budget, superseded_limit=_SUPERSEDED_BYTES, is_taken=lambda: disk.is_keeping_up
    )


def _unable(name: str, problem: str) -> ApiError:
    return ApiError(500, f"unable to load model {name}: {problem}")


def _freed(executor: Executor) -> asyncio.Event:
    """Is set when nothing refers to the weights any more, from whatever thread that happens in."""
    loop, freed = asyncio.get_running_loop(), asyncio.Event()

    def say_so() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(freed.set)

    weakref.finalize(executor, say_so).atexit = False
    return freed


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for an event, so long at most; whether it came."""
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
