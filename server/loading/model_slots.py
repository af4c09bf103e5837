"""Which models are in memory, who uses them and who waits: counts, a queue, and who has to go.

A model that is in memory serves whoever asks. Requests for others wait in a queue, first come first
served: one model is loaded at a time, for only then is it known how much memory the next one finds.
To make room, idle models go, the least recently used first; one in use never goes. When none is
idle, the least recently used takes no new requests until it is: they queue behind the model that
waits, so that no stream of requests for one model keeps another out for ever.

All of this runs on the event loop; nothing here knows what a model is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from rwkv_core.errors import AnserError, EngineBusyError, EngineStoppedError
from rwkv_core.scheduler import BUSY

log = logging.getLogger(__name__)

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)

_SHUTTING_DOWN = "the server is shutting down"
_GONE = "the model was unloaded before the request began; send it again"


class NoRoomError(AnserError):
    """`load` found `missing` bytes too few, as far as is known; `error` is for who asked."""

    def __init__(self, error: Exception, missing: int = 0) -> None:
        super().__init__(str(error))
        self.error = error
        self.missing = missing


class Keeper(Protocol[M_contra]):
    """What is done with models that are in memory."""

    def is_usable(self, model: M_contra) -> bool:
        """Whether it can serve requests."""

    def num_bytes(self, models: Collection[M_contra]) -> int:
        """Memory that would be free without them."""

    async def unload(self, model: M_contra) -> None:
        """Returns when its memory is free."""


@dataclass(eq=False)
class _Slot(Generic[M]):
    """A model in memory. `model` is None once it is being unloaded: its memory is to go."""

    key: str
    model: M | None
    num_uses: int = 0
    last_used: int = 0
    is_draining: bool = False  # takes no new requests


@dataclass(eq=False)
class _Ticket(Generic[M]):
    """Requests for a model that is not in memory."""

    key: str
    load: Callable[[], Awaitable[M]]
    waiters: list[asyncio.Future[_Slot[M]]] = field(default_factory=list)
    is_loading: bool = False

    @property
    def is_wanted(self) -> bool:
        return any(not waiter.done() for waiter in self.waiters)


class ModelSlots(Generic[M]):
    """The models in memory, by key."""

    def __init__(
        self,
        keeper: Keeper[M],
        *,
        max_loaded: int,
        max_waiting: int,
        on_idle: Callable[[M], None],
    ) -> None:
        """At most `max_loaded` models at once, `max_waiting` requests for others. `on_idle` is told
        of a model that nobody uses any more, and may call `unload_idle`.
        """
        self._keeper = keeper
        self._on_idle = on_idle
        self._max_loaded = max_loaded
        self._max_waiting = max_waiting
        self._slots: dict[str, _Slot[M]] = {}
        self._tickets: list[_Ticket[M]] = []  # in the order of their arrival
        self._unloading: set[asyncio.Task[None]] = set()
        self._num_unloaded = 0
        self._loader: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # something that the loader may wait for
        self._clock = 0
        self._is_closed = False

    def loaded(self) -> list[M]:
        return [slot.model for slot in self._slots.values() if slot.model is not None]

    def get(self, key: str) -> M | None:
        slot = self._slots.get(key)
        return slot.model if slot else None

    def is_used(self, key: str) -> bool:
        slot = self._slots.get(key)
        return slot is not None and slot.num_uses > 0

    @property
    def num_waiting(self) -> int:
        """Requests that wait for others: not the one whose model is being loaded."""
        num_waiters = sum(len(ticket.waiters) for ticket in self._tickets)
        return num_waiters - any(each.is_loading and each.waiters for each in self._tickets)

    @asynccontextmanager
    async def use(self, key: str, load: Callable[[], Awaitable[M]]) -> AsyncIterator[M]:
        """The model, for as long as the block runs; `load` makes it if it is not in memory.

        A load that has begun ends, whoever goes away meanwhile. Raises EngineBusyError when too
        many wait, EngineStoppedError after `close`, and what `load` does; NoRoomError from there
        means to try again when there is more room, and its `error` is raised if there cannot be.
        """
        slot = await self._acquire(key, load)
        try:
            if slot.model is None:  # between being found and getting here
                raise EngineStoppedError(_GONE)
            yield slot.model
        finally:
            self._release(slot)

    def unload_idle(self, key: str) -> None:
        """Lets go of a model, unless it is in use."""
        slot = self._slots.get(key)
        if slot is not None and not slot.num_uses:
            self._discard(slot)

    async def close(self) -> None:
        """Unloads everything, also what is in use; who waits gets EngineStoppedError."""
        self._is_closed = True
        for ticket in list(self._tickets):
            self._fail(ticket, EngineStoppedError(_SHUTTING_DOWN))
        self._changed.set()
        if self._loader is not None:
            await self._loader
        for slot in list(self._slots.values()):
            self._discard(slot)
        await self._settle()

    async def _acquire(self, key: str, load: Callable[[], Awaitable[M]]) -> _Slot[M]:
        if self._is_closed:
            raise EngineStoppedError(_SHUTTING_DOWN)
        slot = self._slots.get(key)
        if slot is not None and slot.model is not None and not self._keeper.is_usable(slot.model):
            log.error("the engine of %s has died; loading the model again", key)
            self._discard(slot)
            slot = None
        if slot is not None and not slot.is_draining:
            return self._taken(slot)
        return await self._wait(self._ticket(key, load))

    def _ticket(self, key: str, load: Callable[[], Awaitable[M]]) -> _Ticket[M]:
        """The one for this model. Raises EngineBusyError when too many wait already."""
        ticket = next((each for each in self._tickets if each.key == key), None)
        is_idle = any(not slot.num_uses for slot in self._slots.values())
        is_next = not self._tickets and (len(self._slots) < self._max_loaded or is_idle)
        if not is_next and self.num_waiting >= self._max_waiting:
            raise EngineBusyError(BUSY)
        if ticket is None:
            ticket = _Ticket(key, load)
            self._tickets.append(ticket)
        return ticket

    async def _wait(self, ticket: _Ticket[M]) -> _Slot[M]:
        waiter: asyncio.Future[_Slot[M]] = asyncio.get_running_loop().create_future()
        ticket.waiters.append(waiter)
        if self._loader is None or self._loader.done():
            self._loader = asyncio.create_task(self._load_all(), name="load models")
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())  # it came at the same moment
            raise
        finally:
            ticket.waiters.remove(waiter)
            if not ticket.waiters and not ticket.is_loading and ticket in self._tickets:
                self._tickets.remove(ticket)
            self._changed.set()

    def _taken(self, slot: _Slot[M]) -> _Slot[M]:
        self._clock += 1
        slot.num_uses, slot.last_used = slot.num_uses + 1, self._clock
        return slot

    def _release(self, slot: _Slot[M]) -> None:
        self._clock += 1
        slot.num_uses, slot.last_used = slot.num_uses - 1, self._clock
        if not slot.num_uses and slot.model is not None:
            self._on_idle(slot.model)
        self._changed.set()

    def _discard(self, slot: _Slot[M]) -> None:
        """Takes a model out; its memory is free when the task has ended."""
        model, slot.model = slot.model, None
        assert model is not None
        del self._slots[slot.key]
        task = asyncio.create_task(self._keeper.unload(model), name=f"unload {slot.key}")
        self._unloading.add(task)
        task.add_done_callback(self._unloaded)

    def _unloaded(self, task: asyncio.Task[None]) -> None:
        self._unloading.discard(task)
        self._num_unloaded += 1
        self._changed.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("a model could not be unloaded", exc_info=task.exception())

    async def _settle(self) -> None:
        """Waits until the memory of all that goes is free."""
        while self._unloading:
            await asyncio.wait(set(self._unloading))

    async def _load_all(self) -> None:
        """Serves the queue until it is empty."""
        while self._tickets:
            ticket = self._tickets[0]
            try:
                await self._serve(ticket)
            except Exception as error:
                self._fail(ticket, error)
            if ticket in self._tickets:
                self._tickets.remove(ticket)
            for slot in self._slots.values():
                if slot.is_draining:
                    self._readmit(slot)

    async def _serve(self, ticket: _Ticket[M]) -> None:
        """Loads the model of the first in the queue, unless all who wanted it go away before."""
        while ticket.is_wanted:
            if self._unloading:
                await self._settle()
            elif len(self._slots) >= self._max_loaded:
                await self._make_room(ticket)
            elif await self._try_to_load(ticket):
                return

    async def _try_to_load(self, ticket: _Ticket[M]) -> bool:
        """False if it is worth another try, as there is more room now."""
        num_unloaded = self._num_unloaded
        ticket.is_loading = True
        try:
            model = await ticket.load()
        except NoRoomError as error:
            shortage = error
        else:
            self._admit(ticket, model)
            return True
        finally:
            ticket.is_loading = False
        await self._settle()
        if self._num_unloaded == num_unloaded:  # else it did not find what is free now
            if not self._can_free(shortage.missing):
                raise shortage.error
            await self._make_room(ticket)
        return False

    def _can_free(self, num_bytes: int) -> bool:
        """Whether so much memory becomes free when all models go."""
        models = self.loaded()
        return bool(models) and num_bytes <= self._keeper.num_bytes(models)

    async def _make_room(self, ticket: _Ticket[M]) -> None:
        """Returns when a model has gone, or nobody wants the ticket's any more."""
        num_unloaded = self._num_unloaded
        while ticket.is_wanted and self._slots:
            idle = [slot for slot in self._slots.values() if not slot.num_uses]
            if idle:
                self._discard(min(idle, key=lambda slot: slot.last_used))
            await self._settle()
            if self._num_unloaded != num_unloaded:
                return
            if not any(slot.is_draining for slot in self._slots.values()):
                min(self._slots.values(), key=lambda slot: slot.last_used).is_draining = True
            self._changed.clear()
            await self._changed.wait()

    def _admit(self, ticket: _Ticket[M], model: M) -> None:
        """The ticket's model is in memory."""
        slot = _Slot(ticket.key, model)
        self._slots[ticket.key] = slot
        self._serve_waiters(ticket, slot)
        if not slot.num_uses:
            self._on_idle(model)

    def _readmit(self, slot: _Slot[M]) -> None:
        """A model that was to go stays; who has asked for it meanwhile waited for nothing."""
        slot.is_draining = False
        for ticket in [each for each in self._tickets if each.key == slot.key]:
            self._tickets.remove(ticket)
            self._serve_waiters(ticket, slot)

    def _serve_waiters(self, ticket: _Ticket[M], slot: _Slot[M]) -> None:
        for waiter in ticket.waiters:
            if not waiter.done():
                waiter.set_result(self._taken(slot))

    def _fail(self, ticket: _Ticket[M], error: Exception) -> None:
        for waiter in ticket.waiters:
            if not waiter.done():
                waiter.set_exception(error)
