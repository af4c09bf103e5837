"""Models that weigh nothing in a `ModelSlots` that is watched."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from server.loading.model_slots import ModelSlots, NoRoomError

PLENTY = 1000
# Turns of the event loop in which all that can happen without anybody's doing has happened.
MANY_TURNS = 60


class TooLargeError(Exception):
    """What who asked for it gets."""


@dataclass(eq=False)
class Fake:
    """A model of so many bytes."""

    key: str
    num_bytes: int
    is_healthy: bool = True
    num_users: int = 0


@dataclass
class World:
    """Loads and unloads, and watches that nothing happens which must not."""

    max_loaded: int = PLENTY
    memory: int = PLENTY
    max_waiting: int = PLENTY
    sizes: dict[str, int] = field(default_factory=dict)
    fails: set[str] = field(default_factory=set)
    turns: int = 2  # of the event loop, for a load or an unload
    is_stuck: bool = False  # loads do not end
    num_loads: Counter[str] = field(default_factory=Counter)
    unloaded: list[str] = field(default_factory=list)
    in_memory: set[Fake] = field(default_factory=set)  # what has or gets memory
    num_loading: int = 0

    def __post_init__(self) -> None:
        self.slots: ModelSlots[Fake] = ModelSlots(
            self, max_loaded=self.max_loaded, max_waiting=self.max_waiting, on_idle=self.idle
        )
        self.expires: set[str] = set()  # what goes as soon as it is idle

    def is_usable(self, model: Fake) -> bool:
        return model.is_healthy

    def num_bytes(self, models: Collection[Fake]) -> int:
        return sum(each.num_bytes for each in models)

    def idle(self, model: Fake) -> None:
        assert model.num_users == 0
        if model.key in self.expires:
            self.slots.unload_idle(model.key)

    async def load(self, key: str) -> Fake:
        assert self.num_loading == 0, "two loads at once"
        assert key not in {each.key for each in self.in_memory}, "a model is loaded twice"
        assert len(self.in_memory) < self.max_loaded, "too many models"
        self.num_loading += 1
        try:
            if key in self.fails:
                raise ValueError(key)
            model = Fake(key, self.sizes.get(key, 1))
            missing = self.num_bytes(self.in_memory) + model.num_bytes - self.memory
            if missing > 0:
                raise NoRoomError(TooLargeError(key), missing)
            self.in_memory.add(model)
            while self.is_stuck:
                await asyncio.sleep(0)
            await turns(self.turns)
            self.num_loads[key] += 1
            return model
        finally:
            self.num_loading -= 1

    async def unload(self, model: Fake) -> None:
        assert model.num_users == 0 or not model.is_healthy, "a model in use is unloaded"
        await turns(self.turns)
        self.in_memory.remove(model)
        self.unloaded.append(model.key)

    def client(self, key: str) -> Client:
        return Client(self, key)


class Client:
    """A request: it uses its model until it is told to end."""

    def __init__(self, world: World, key: str) -> None:
        self.key = key
        self.model: Fake | None = None
        self._world = world
        self._may_end = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._world.slots.use(self.key, lambda: self._world.load(self.key)) as model:
            assert model.key == self.key
            assert model in self._world.in_memory
            self.model = model
            model.num_users += 1
            try:
                await self._may_end.wait()
            finally:
                model.num_users -= 1

    @property
    def is_waiting(self) -> bool:
        return self.model is None and not self.task.done()

    def end(self) -> None:
        self._may_end.set()

    async def failure(self) -> BaseException | None:
        return (await asyncio.gather(self.task, return_exceptions=True))[0]


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
