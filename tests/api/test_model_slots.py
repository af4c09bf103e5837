"""Models in memory against a model of it: never too many, never one in use taken, all served."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_core.errors import EngineBusyError, EngineStoppedError
from tests.tools.slot_world import MANY_TURNS, PLENTY, Client, TooLargeError, World, turns


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def loaded(world: World) -> list[str]:
    return sorted(each.key for each in world.slots.loaded())


def test_a_model_is_loaded_once_for_all_who_want_it() -> None:
    async def test() -> None:
        world = World()
        clients = [world.client("a") for _ in range(5)]
        await turns(MANY_TURNS)
        assert all(each.model is clients[0].model is not None for each in clients)
        assert world.num_loads == {"a": 1}
        assert world.slots.is_used("a")
        for each in clients:
            each.end()
        await turns(MANY_TURNS)
        assert not world.slots.is_used("a")
        assert loaded(world) == ["a"]

    run(test())


def test_the_least_recently_used_goes_first() -> None:
    async def test() -> None:
        world = World(max_loaded=3)
        for key in "abca":
            client = world.client(key)
            await turns(MANY_TURNS)
            client.end()
        await turns(MANY_TURNS)
        for key in "de":
            client = world.client(key)
            await turns(MANY_TURNS)
            client.end()
        assert world.unloaded == ["b", "c"]
        assert loaded(world) == ["a", "d", "e"]

    run(test())


def test_who_finds_all_in_use_waits_for_the_first_that_is_not() -> None:
    async def test() -> None:
        world = World(max_loaded=2)
        a, b = world.client("a"), world.client("b")
        await turns(MANY_TURNS)
        c = world.client("c")
        await turns(MANY_TURNS)
        assert c.is_waiting
        assert world.slots.num_waiting == 1
        b.end()
        await turns(MANY_TURNS)
        assert c.model
        assert loaded(world) == ["a", "c"]
        a_again = world.client("a")  # it was to make room, and is not any more
        await turns(MANY_TURNS)
        assert a_again.model is a.model

    run(test())


def test_a_stream_of_requests_for_one_model_does_not_keep_another_out() -> None:
    async def test() -> None:
        world = World(max_loaded=1)
        current = world.client("a")
        await turns(MANY_TURNS)
        other = world.client("b")
        await turns(MANY_TURNS)
        late = [world.client("a") for _ in range(3)]
        await turns(MANY_TURNS)
        assert other.is_waiting
        assert all(each.is_waiting for each in late)
        current.end()
        await turns(MANY_TURNS)
        assert other.model
        assert all(each.is_waiting for each in late)
        other.end()
        await turns(MANY_TURNS)
        assert all(each.model for each in late)
        assert world.num_loads == {"a": 2, "b": 1}

    run(test())


def test_those_who_waited_behind_one_that_gave_up_go_on() -> None:
    async def test() -> None:
        world = World(max_loaded=1)
        current = world.client("a")
        await turns(MANY_TURNS)
        other = world.client("b")
        await turns(MANY_TURNS)
        late = world.client("a")
        await turns(MANY_TURNS)
        assert late.is_waiting
        other.task.cancel()
        await turns(MANY_TURNS)
        assert late.model is current.model
        assert world.num_loads == {"a": 1}
        assert world.slots.num_waiting == 0

    run(test())


def test_memory_is_made_by_as_many_as_it_takes() -> None:
    async def test() -> None:
        world = World(memory=10, sizes={"a": 3, "b": 3, "c": 3, "large": 6})
        for key in "abc":
            client = world.client(key)
            await turns(MANY_TURNS)
            client.end()
        await turns(MANY_TURNS)
        large = world.client("large")
        await turns(MANY_TURNS)
        assert large.model
        assert world.unloaded == ["a", "b"]
        assert loaded(world) == ["c", "large"]

    run(test())


def test_memory_that_is_in_use_is_waited_for() -> None:
    async def test() -> None:
        world = World(memory=10, sizes={"a": 4, "b": 4, "large": 8})
        a, b = world.client("a"), world.client("b")
        await turns(MANY_TURNS)
        large = world.client("large")
        await turns(MANY_TURNS)
        assert large.is_waiting
        b.end()
        await turns(MANY_TURNS)
        assert large.is_waiting
        assert world.unloaded == ["b"]
        a.end()
        await turns(MANY_TURNS)
        assert large.model

    run(test())


def test_what_can_never_fit_takes_nothing_from_others() -> None:
    async def test() -> None:
        world = World(memory=10, sizes={"a": 4, "huge": 11})
        a = world.client("a")
        await turns(MANY_TURNS)
        for is_idle in (False, True):
            huge = world.client("huge")
            assert isinstance(await huge.failure(), TooLargeError)
            assert loaded(world) == ["a"]
            assert world.unloaded == []
            if not is_idle:
                a.end()
                await turns(MANY_TURNS)
        world.slots.unload_idle("a")
        await turns(MANY_TURNS)
        assert isinstance(await world.client("huge").failure(), TooLargeError)
        assert loaded(world) == []

    run(test())


def test_a_load_that_fails_fails_those_who_wait_for_it() -> None:
    async def test() -> None:
        world = World(max_loaded=1, fails={"bad"})
        clients = [world.client(key) for key in ("bad", "a", "bad")]
        await turns(MANY_TURNS)
        assert isinstance(await clients[0].failure(), ValueError)
        assert isinstance(await clients[2].failure(), ValueError)
        assert clients[1].model
        world.fails.clear()
        clients[1].end()
        again = world.client("bad")
        await turns(MANY_TURNS)
        assert again.model

    run(test())


def test_too_many_are_refused() -> None:
    async def test() -> None:
        world = World(max_loaded=1, max_waiting=2)
        a = world.client("a")
        await turns(MANY_TURNS)
        waiting = [world.client("b"), world.client("c")]
        await turns(MANY_TURNS)
        for key in "abd":
            refused = await world.client(key).failure()
            assert isinstance(refused, EngineBusyError)
            assert "maximum pending requests exceeded" in str(refused)
        waiting[1].task.cancel()
        await turns(MANY_TURNS)
        again = world.client("d")
        await turns(MANY_TURNS)
        assert again.is_waiting
        a.end()
        await turns(MANY_TURNS)
        assert waiting[0].model

    run(test())


def test_without_a_queue_one_is_served_at_a_time() -> None:
    async def test() -> None:
        world = World(max_loaded=1, max_waiting=0)
        for key in "aba":
            client = world.client(key)
            await turns(MANY_TURNS)
            assert client.model
            refused = world.client("z")
            assert isinstance(await refused.failure(), EngineBusyError)
            client.end()
            await turns(MANY_TURNS)

    run(test())


def test_a_load_that_nobody_wants_any_more_ends_and_is_idle() -> None:
    async def test() -> None:
        world = World(is_stuck=True)
        client = world.client("a")
        await turns(MANY_TURNS)
        client.task.cancel()
        await turns(MANY_TURNS)
        world.is_stuck = False
        await turns(MANY_TURNS)
        assert loaded(world) == ["a"]
        assert not world.slots.is_used("a")
        world.expires.add("b")
        world.is_stuck = True
        client = world.client("b")
        await turns(MANY_TURNS)
        client.task.cancel()
        world.is_stuck = False
        await turns(MANY_TURNS)
        assert loaded(world) == ["a"]

    run(test())


def test_a_model_that_has_died_is_loaded_again() -> None:
    async def test() -> None:
        world = World(max_loaded=1)
        a = world.client("a")
        await turns(MANY_TURNS)
        assert a.model
        a.model.is_healthy = False
        again = world.client("a")
        await turns(MANY_TURNS)
        assert again.model
        assert again.model is not a.model
        a.end()
        await turns(MANY_TURNS)
        assert world.slots.is_used("a")
        assert loaded(world) == ["a"]

    run(test())


@pytest.mark.parametrize("is_stuck", [False, True])
def test_closing_ends_everything(is_stuck: bool) -> None:
    async def test() -> None:
        world = World(max_loaded=1)
        a = world.client("a")
        await turns(MANY_TURNS)
        waiting = [world.client("b"), world.client("c")]
        await turns(MANY_TURNS)
        if is_stuck:
            world.is_stuck = True
            a.end()
            await turns(MANY_TURNS)
        else:
            assert a.model
            a.model.is_healthy = False  # what closing its engine does to it
        closing = asyncio.create_task(world.slots.close())
        await turns(MANY_TURNS)
        world.is_stuck = False
        await closing
        assert loaded(world) == []
        assert world.in_memory == set()
        for each in waiting:
            assert isinstance(await each.failure(), EngineStoppedError)
        assert isinstance(await world.client("d").failure(), EngineStoppedError)

    run(test())


KEYS = "abcd"
CHANGES = ("expire", "keep", "die", "fail", "mend")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(KEYS)),
        st.tuples(st.just("ask"), st.sampled_from(KEYS)),
        st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 30)),
        st.tuples(
            st.sampled_from(["expire", "keep", "die", "fail", "mend"]), st.sampled_from(KEYS)
        ),
        st.tuples(st.just("wait"), st.integers(1, 12)),
    ),
    max_size=50,
)


def take(world: World, clients: list[Client], action: str, what: str | int) -> None:
    """One step of a history, but for waiting."""
    if action == "ask":
        clients.append(world.client(str(what)))
    elif action in ("end", "cancel") and clients:
        client = clients[int(what) % len(clients)]
        client.task.cancel() if action == "cancel" else client.end()
    elif action == "expire":
        world.expires.add(str(what))
        world.slots.unload_idle(str(what))
    elif action == "keep":
        world.expires.discard(str(what))
    elif action == "die" and (model := world.slots.get(str(what))):
        model.is_healthy = False
    elif action == "fail":
        world.fails.add(str(what))
    elif action == "mend":
        world.fails.discard(str(what))


@settings(deadline=None, max_examples=300)
@given(
    STEPS,
    st.integers(1, 3),
    st.integers(3, 12),
    st.sampled_from([0, 2, PLENTY]),
    st.integers(0, 4),
)
def test_any_history(
    steps: list[tuple[str, str | int]], max_loaded: int, memory: int, max_waiting: int, speed: int
) -> None:
    """`World` asserts what must never happen; here, that everybody comes to an end."""

    async def test() -> None:
        sizes = {"a": 1, "b": 2, "c": 3, "d": 6}
        world = World(max_loaded, memory, max_waiting, sizes, turns=speed)
        clients: list[Client] = []
        for action, what in steps:
            if action == "wait":
                await turns(int(what))
            else:
                take(world, clients, action, what)
            assert len(world.slots.loaded()) <= max_loaded
            assert world.slots.num_waiting <= max_waiting + 1
        for client in clients:  # the replies of all come to an end, so everyone has its turn
            client.end()
        failures = [await client.failure() for client in clients]
        for client, failure in zip(clients, failures, strict=True):
            if isinstance(failure, AssertionError):
                raise failure
            if isinstance(failure, TooLargeError):
                assert sizes[client.key] > memory
            if isinstance(failure, EngineBusyError):
                assert max_waiting < PLENTY
            assert failure is None or isinstance(
                failure,
                TooLargeError | EngineBusyError | EngineStoppedError | ValueError
                | asyncio.CancelledError,
            )  # fmt: skip
        await turns(MANY_TURNS)
        assert world.slots.num_waiting == 0
        assert {each.key for each in world.in_memory} == set(loaded(world))
        assert not any(world.slots.is_used(key) for key in KEYS)
        await world.slots.close()
        assert world.in_memory == set()

    run(test())
