"""Which models are in memory: loaded once for however many ask, kept while used, let go when idle or in the way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar, cast

from streaming.errors import ModelBusy, Overloaded

log = logging.getLogger(__name__)

T = TypeVar("T")


class _State(Enum):
    WAITING = "asked for; may wait for a download or for room"
    LOADING = "its memory is being filled"
    LOADED = "serves"
    LEAVING = "takes no new leases; closes with the last one"
    GONE = "its memory is free, or being freed"


@dataclass(slots=True, eq=False)
class _Resident(Generic[T]):
    key: str
    keep_alive: float
    used: float
    state: _State = _State.WAITING
    value: T | None = None
    leases: int = 0
    """Those who use it and those who wait for it: neither may lose it."""
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def occupies(self) -> bool:
        """Holds memory that a bound on models counts; while it is freed, `_closing` counts it."""
        return self.state in (_State.LOADING, _State.LOADED, _State.LEAVING)

    @property
    def idle(self) -> bool:
        """In memory, and nobody would miss it."""
        return self.state is _State.LOADED and not self.leases


@dataclass(frozen=True, slots=True)
class Stay(Generic[T]):
    """A model in memory, as `snapshot` tells it."""

    key: str
    value: T
    leases: int
    idle: float
    """Seconds since its last use; 0 in use."""
    expires_in: float | None
    """Seconds until it goes; None while in use or for ever."""


class Residency(Generic[T]):
    """Belongs to one event loop.

    `prepare` fetches what a key needs before room is made for it, `load` makes what the key stands for, `close` frees
    it (its flag: at once, though in use) and returns when the memory is back.
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[T]],
        close: Callable[[T, bool], Awaitable[None]],
        *,
        prepare: Callable[[str], Awaitable[object]] | None = None,
        limit: int | None = None,
        keep_alive: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._close = close
        self._prepare = prepare
        self._limit = limit
        self._keep_alive = keep_alive
        self._clock = clock
        self._residents: dict[str, _Resident[T]] = {}
        self._leaving: set[_Resident[T]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._door = asyncio.Lock()  # one makes room at a time, or two would take the same place
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[T, None]:
        """Use what `key` stands for; it stays while the block runs.

        Raises what `prepare` and `load` raise, and Overloaded where the limit is reached and everything loaded is in
        use.
        """
        resident = await self._take(key)
        try:
            yield cast(T, resident.value)
        finally:
            self._give(resident)

    async def load(self, key: str, *, keep_alive: float | None = None) -> T:
        """Have `key` in memory; `keep_alive` in seconds from its last use on, below zero for ever."""
        resident = await self._take(key)
        if keep_alive is not None:
            resident.keep_alive = keep_alive
        self._give(resident)
        return cast(T, resident.value)

    async def unload(self, key: str, *, force: bool = False) -> bool:
        """Let `key` go: at once when idle or forced, else with its last lease. False if it is not loaded.

        At once means that its memory is free on return. Raises ModelBusy while it is being loaded.
        """
        leaving = [each for each in self._leaving if force and each.key == key]
        if leaving:
            await asyncio.shield(asyncio.wait([self._free(each, force=True) for each in leaving]))
        resident = self._residents.get(key)
        if resident is None:
            return bool(leaving)
        if resident.state is not _State.LOADED:
            raise ModelBusy(f"model {key} is being loaded; unload it when it is")
        self._dismiss(resident)
        if force or not resident.leases:
            await asyncio.shield(self._free(resident, force=force))
        return True

    def snapshot(self) -> list[Stay[T]]:
        """What is in memory, least recently used first."""
        now = self._clock()
        stays = []
        loaded = [each for each in self._residents.values() if each.state is _State.LOADED]
        for each in sorted(loaded, key=lambda each: each.used):
            idle = 0.0 if each.leases else now - each.used
            bound = not each.leases and each.keep_alive >= 0
            left = max(0.0, each.used + each.keep_alive - now) if bound else None
            stays.append(Stay(each.key, cast(T, each.value), each.leases, idle, left))
        return stays

    def loading(self) -> list[str]:
        """What is on its way into memory."""
        on_the_way = (_State.WAITING, _State.LOADING)
        return [each.key for each in self._residents.values() if each.state in on_the_way]

    def expire(self) -> None:
        """Let go of everything whose time is up. Called by the timer."""
        now = self._clock()
        for each in list(self._residents.values()):
            if each.idle and each.keep_alive >= 0 and each.used + each.keep_alive <= now:
                log.info("model %s unloaded after %g s without use", each.key, each.keep_alive)
                self._dismiss(each)
                self._free(each, force=False)
        self._arm()

    async def aclose(self) -> None:
        """Let go of everything, at once."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [each.task for each in self._residents.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
        for each in list(self._residents.values()):
            self._dismiss(each)
        for each in list(self._leaving):
            self._free(each, force=True)
        while self._closing:
            await asyncio.wait(self._closing)

    async def _take(self, key: str) -> _Resident[T]:
        """The resident of `key`, loaded, with a lease on it: from the asking on, so that nothing takes it away before
        whoever waits has it."""
        while True:
            resident = self._residents.get(key)
            if resident is None:
                resident = _Resident(key, self._keep_alive, self._clock())
                self._residents[key] = resident
                resident.task = asyncio.get_running_loop().create_task(self._bring(resident))
                resident.task.add_done_callback(_seen)
            resident.leases += 1
            if resident.state is _State.LOADED:
                return resident
            task = resident.task
            assert task is not None
            try:
                # Shielded: one who stops waiting does not stop the load for the others.
                await asyncio.shield(task)
            except BaseException:
                self._give(resident)
                raise
            if resident.state is not _State.GONE:
                return resident
            resident.leases -= 1  # unloaded by force before we had a look at it

    def _give(self, resident: _Resident[T]) -> None:
        """Return a lease."""
        resident.leases -= 1
        resident.used = self._clock()
        if resident.state is _State.LEAVING and not resident.leases:
            self._free(resident, force=False)
        self._arm()

    async def _bring(self, resident: _Resident[T]) -> None:
        try:
            if self._prepare is not None:
                await self._prepare(resident.key)
            await self._make_room(resident)
            resident.value = await self._load(resident.key)
        except BaseException:
            resident.state = _State.GONE
            self._residents.pop(resident.key, None)
            raise
        resident.state = _State.LOADED
        resident.used = self._clock()
        resident.task = None
        self._arm()

    async def _make_room(self, newcomer: _Resident[T]) -> None:
        """Returns once there is room and the memory of what left is back; `newcomer` holds its place from then on."""
        async with self._door:
            while True:
                if self._closing:
                    await asyncio.wait(self._closing)
                    continue
                there = [*self._residents.values(), *self._leaving]
                if self._limit is None or sum(each.occupies for each in there) < self._limit:
                    newcomer.state = _State.LOADING
                    return
                idle = [each for each in self._residents.values() if each.idle]
                if not idle:
                    raise Overloaded(
                        f"{self._limit} models are loaded, which is the limit, and all are in use; try again later",
                        retry_after=5,
                    )
                oldest = min(idle, key=lambda each: each.used)
                log.info("model %s unloaded to make room for %s", oldest.key, newcomer.key)
                self._dismiss(oldest)
                self._free(oldest, force=False)

    def _dismiss(self, resident: _Resident[T]) -> None:
        """No new leases from here on."""
        self._residents.pop(resident.key, None)
        resident.state = _State.LEAVING
        self._leaving.add(resident)

    def _free(self, resident: _Resident[T], *, force: bool) -> asyncio.Task[None]:
        """Close what was dismissed, once."""
        assert resident.state is _State.LEAVING
        resident.state = _State.GONE
        self._leaving.discard(resident)

        async def close() -> None:
            try:
                await self._close(cast(T, resident.value), force)
            except Exception:
                log.exception("unloading %s failed", resident.key)
            finally:
                resident.value = None

        task = asyncio.get_running_loop().create_task(close())
        self._closing.add(task)  # bounded by the models in memory
        task.add_done_callback(self._closing.discard)
        return task

    def _arm(self) -> None:
        """Set the one timer to the next expiry."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        due = [
            each.used + each.keep_alive - now
            for each in self._residents.values()
            if each.idle and each.keep_alive >= 0
        ]
        if due:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, min(due)) + 0.001, self.expire)


def _seen(task: asyncio.Task[None]) -> None:
    """A load whose every waiter has left may fail in peace."""
    if not task.cancelled():
        task.exception()
