"""Models are loaded once, kept while used, and let go in order."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from streaming.errors import ModelBusy, ModelUnavailable, Overloaded
from streaming.residency import Residency


class World:
    """Loads and closes by name; time stands still until told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loads: list[str] = []
        self.closed: list[tuple[str, bool]] = []
        self.gate: asyncio.Event | None = None
        self.broken = False

    async def load(self, key: str) -> str:
        self.loads.append(key)
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise ModelUnavailable("broken")
        return key.upper()

    async def close(self, value: str, force: bool) -> None:
        self.closed.append((value, force))

    def residency(self, **more: object) -> Residency[str]:
        return Residency(self.load, self.close, clock=lambda: self.now, **more)  # type: ignore[arg-type]


def scenario(test: Callable[[World], Awaitable[None]]) -> None:
    world = World()
    asyncio.run(asyncio.wait_for(test(world), 10))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_many_who_ask_at_once_load_once() -> None:
    async def test(world: World) -> None:
        models = world.residency()
        world.gate = asyncio.Event()

        async def use() -> str:
            async with models.lease("a") as value:
                return value

        asking = [asyncio.create_task(use()) for _ in range(5)]
        await turns()
        asking[0].cancel()
        world.gate.set()
        assert await asyncio.gather(*asking[1:]) == ["A"] * 4
        assert world.loads == ["a"]
        await models.aclose()

    scenario(test)


def test_a_failed_load_is_told_to_all_and_tried_again_next_time() -> None:
    async def test(world: World) -> None:
        models, world.broken = world.residency(), True
        results = await asyncio.gather(models.load("a"), models.load("a"), return_exceptions=True)
        assert [type(each) for each in results] == [ModelUnavailable] * 2
        world.broken = False
        assert await models.load("a") == "A"
        assert world.loads == ["a", "a"]
        await models.aclose()

    scenario(test)


def test_an_idle_model_goes_when_its_time_is_up() -> None:
    async def test(world: World) -> None:
        models = world.residency(keep_alive=300)
        await models.load("a")
        await models.load("b", keep_alive=-1)
        await models.load("c", keep_alive=10)
        world.now = 11
        models.expire()
        await turns()
        assert world.closed == [("C", False)]
        world.now = 1e6
        models.expire()
        await turns()
        assert world.closed == [("C", False), ("A", False)]
        assert [stay.key for stay in models.snapshot()] == ["b"]
        assert models.snapshot()[0].expires_in is None
        await models.aclose()

    scenario(test)


def test_a_model_in_use_neither_expires_nor_is_evicted() -> None:
    async def test(world: World) -> None:
        models = world.residency(keep_alive=1, limit=2)
        async with models.lease("a"):
            world.now = 100
            models.expire()
            await models.load("b")
            await models.load("c")
            await turns()
            assert world.closed == [("B", False)]
            async with models.lease("c"):
                with pytest.raises(Overloaded, match="2 models are loaded"):
                    await models.load("d")
        assert [stay.key for stay in models.snapshot()] == ["c", "a"] or len(models.snapshot()) == 2
        await models.aclose()

    scenario(test)


def test_the_least_recently_used_goes_first() -> None:
    async def test(world: World) -> None:
        models = world.residency(limit=2)
        for world.now, key in enumerate("ab"):
            await models.load(key)
        world.now = 5
        async with models.lease("a"):
            pass
        await models.load("c")
        await turns()
        assert world.closed == [("B", False)]
        await models.aclose()

    scenario(test)


def test_unloading_in_use_waits_for_the_last_and_new_requests_get_a_fresh_one() -> None:
    async def test(world: World) -> None:
        models = world.residency()
        async with models.lease("a"):
            assert await models.unload("a")
            assert world.closed == []
            async with models.lease("a"):
                assert world.loads == ["a", "a"]
        await turns()
        assert world.closed == [("A", False)]
        assert not await models.unload("b")
        await models.aclose()

    scenario(test)


def test_force_unloads_at_once() -> None:
    async def test(world: World) -> None:
        models = world.residency()
        async with models.lease("a"):
            assert await models.unload("a", force=True)
            assert world.closed == [("A", True)]
        await models.aclose()
        assert world.closed == [("A", True)]

    scenario(test)


def test_keep_alive_zero_lets_go_after_use_by_itself() -> None:
    async def test(world: World) -> None:
        models = Residency(world.load, world.close, keep_alive=0)
        for _ in range(2):
            async with models.lease("a"):
                pass
            while models.snapshot():
                await asyncio.sleep(0.001)
        assert world.loads == ["a", "a"]
        await models.aclose()

    scenario(test)


def test_a_loaded_model_is_not_taken_from_those_who_waited_for_it() -> None:
    """Between the end of a load and the first turn of those who asked, others may want its place."""

    async def test(world: World) -> None:
        models = world.residency(limit=1, keep_alive=0)
        world.gate = asyncio.Event()
        held: list[str] = []

        async def use(key: str) -> None:
            async with models.lease(key) as value:
                assert (value, False) not in world.closed
                held.append(value)
                await turns()
                assert (value, False) not in world.closed

        first = asyncio.create_task(use("a"))
        await turns()
        # Every turn somebody else asks for the place, before and after the load is done.
        others = []
        for turn in range(12):
            if turn == 3:
                world.gate.set()
            models.expire()
            others.append(asyncio.create_task(use("b")))
            await asyncio.sleep(0)
        await first
        results = await asyncio.gather(*others, return_exceptions=True)
        assert held[0] == "A"
        assert {type(each) for each in results if each} <= {Overloaded}
        await models.aclose()
        assert len(world.closed) == len(world.loads)

    scenario(test)


def test_the_next_load_waits_until_the_memory_is_back() -> None:
    async def test(world: World) -> None:
        closing = asyncio.Event()

        async def close(value: str, force: bool) -> None:
            await closing.wait()
            world.closed.append((value, force))

        models = Residency(world.load, close, limit=1)
        await models.load("a")
        wanted = asyncio.create_task(models.load("b"))
        await turns(20)
        assert world.loads == ["a"], "b would not fit beside a"
        closing.set()
        await wanted
        assert world.loads == ["a", "b"]
        gone = asyncio.create_task(models.unload("b"))
        closing.clear()
        await turns()
        assert not gone.done(), "unload returns when the memory is back"
        closing.set()
        assert await gone
        await models.aclose()

    scenario(test)


def test_a_model_that_leaves_when_its_work_is_done_still_counts() -> None:
    async def test(world: World) -> None:
        models = world.residency(limit=1)
        async with models.lease("a"):
            assert await models.unload("a")
            with pytest.raises(Overloaded):
                await models.load("b")
            assert await models.unload("a", force=True)
            assert world.closed == [("A", True)]
            await models.load("b")
        assert world.closed == [("A", True)]
        await models.aclose()

    scenario(test)


def test_unloading_what_is_being_loaded_is_refused() -> None:
    async def test(world: World) -> None:
        models = world.residency()
        world.gate = asyncio.Event()
        asking = asyncio.create_task(models.load("a"))
        await turns()
        assert models.loading() == ["a"]
        assert models.snapshot() == []
        with pytest.raises(ModelBusy, match="being loaded"):
            await models.unload("a")
        world.gate.set()
        await asking
        assert models.loading() == []
        assert await models.unload("a")
        await models.aclose()

    scenario(test)


def test_nothing_makes_room_before_the_download_is_there() -> None:
    async def test(world: World) -> None:
        there = asyncio.Event()

        async def prepare(key: str) -> None:
            if key == "b":
                await there.wait()
            if key == "c":
                raise ModelUnavailable("no such download")

        models = world.residency(limit=1, prepare=prepare)
        await models.load("a")
        asking = asyncio.create_task(models.load("b"))
        await turns()
        assert world.closed == []
        with pytest.raises(ModelUnavailable):
            await models.load("c")
        assert world.closed == []
        there.set()
        assert await asking == "B"
        assert world.closed == [("A", False)]
        await models.aclose()

    scenario(test)


def test_all_who_waited_may_leave_and_the_model_expires_like_any_other() -> None:
    async def test(world: World) -> None:
        models = world.residency(keep_alive=5)
        world.gate = asyncio.Event()
        asking = asyncio.create_task(models.load("a"))
        await turns()
        asking.cancel()
        await turns()
        world.gate.set()
        await turns()
        assert [stay.key for stay in models.snapshot()] == ["a"]
        world.now = 6
        models.expire()
        await turns()
        assert world.closed == [("A", False)]
        await models.aclose()

    scenario(test)
