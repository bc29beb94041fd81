"""Models are loaded once, kept while used, and let go in order."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from streaming.errors import ModelUnavailable, Overloaded
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
