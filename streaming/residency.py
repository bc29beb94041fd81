"""Which models are in memory: loaded once for however many ask, kept while used, let go when idle or in the way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from streaming.errors import Overloaded

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Resident(Generic[T]):
    key: str
    value: T
    keep_alive: float
    used: float
    leases: int = 0
    leaving: bool = False  # no new leases; closes with the last one
    closed: bool = False


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

    `load` makes what a key stands for, `close` frees it (its flag: at once, though in use).
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[T]],
        close: Callable[[T, bool], Awaitable[None]],
        *,
        limit: int | None = None,
        keep_alive: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._close = close
        self._limit = limit
        self._keep_alive = keep_alive
        self._clock = clock
        self._residents: dict[str, _Resident[T]] = {}
        self._loading: dict[str, asyncio.Task[_Resident[T]]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[T, None]:
        """Use what `key` stands for; it stays while the block runs.

        Raises what `load` raises, and Overloaded where the limit is reached and everything loaded is in use.
        """
        resident = await self._get(key)
        resident.leases += 1
        try:
            yield resident.value
        finally:
            resident.leases -= 1
            resident.used = self._clock()
            if resident.leaving and not resident.leases:
                self._let_go(resident, force=False)
            self._arm()

    async def load(self, key: str, *, keep_alive: float | None = None) -> T:
        """Have `key` in memory; `keep_alive` in seconds from its last use on, below zero for ever."""
        resident = await self._get(key)
        if keep_alive is not None:
            resident.keep_alive = keep_alive
        resident.used = self._clock()
        self._arm()
        return resident.value

    async def unload(self, key: str, *, force: bool = False) -> bool:
        """Let `key` go: at once when idle or forced, else with its last lease. False if it is not loaded."""
        resident = self._residents.get(key)
        if resident is None:
            return False
        del self._residents[key]
        resident.leaving = True
        if force or not resident.leases:
            await asyncio.shield(self._let_go(resident, force=force))
        return True

    def snapshot(self) -> list[Stay[T]]:
        """What is in memory, least recently used first."""
        now = self._clock()
        stays = []
        for each in sorted(self._residents.values(), key=lambda each: each.used):
            idle = 0.0 if each.leases else now - each.used
            bound = not each.leases and each.keep_alive >= 0
            left = max(0.0, each.used + each.keep_alive - now) if bound else None
            stays.append(Stay(each.key, each.value, each.leases, idle, left))
        return stays

    def expire(self) -> None:
        """Let go of everything whose time is up. Called by the timer."""
        now = self._clock()
        for each in list(self._residents.values()):
            if not each.leases and each.keep_alive >= 0 and each.used + each.keep_alive <= now:
                del self._residents[each.key]
                log.info("model %s unloaded after %g s without use", each.key, each.keep_alive)
                self._let_go(each, force=False)
        self._arm()

    async def aclose(self) -> None:
        """Let go of everything, at once."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._loading.values():
            task.cancel()
        for task in list(self._loading.values()):
            with suppress(asyncio.CancelledError, Exception):
                await task
        residents, self._residents = list(self._residents.values()), {}
        for each in residents:
            each.leaving = True
            self._let_go(each, force=True)
        while self._closing:
            await asyncio.wait(self._closing)

    async def _get(self, key: str) -> _Resident[T]:
        while True:
            resident = self._residents.get(key)
            if resident is not None:
                return resident
            task = self._loading.get(key)
            if task is None:
                self._make_room()
                task = asyncio.get_running_loop().create_task(self._bring(key))
                self._loading[key] = task
                task.add_done_callback(lambda done: self._loading.pop(key, None))
                task.add_done_callback(_seen)
            # Shielded: one who stops waiting does not stop the load for the others.
            resident = await asyncio.shield(task)
            if not resident.leaving:
                return resident

    async def _bring(self, key: str) -> _Resident[T]:
        value = await self._load(key)
        resident = _Resident(key, value, self._keep_alive, self._clock())
        self._residents[key] = resident
        # With a keep-alive of 0 it must outlive the moment until whoever asked has its lease.
        asyncio.get_running_loop().call_soon(self._arm)
        return resident

    def _make_room(self) -> None:
        if self._limit is None:
            return
        while len(self._residents) + len(self._loading) >= self._limit:
            idle = [each for each in self._residents.values() if not each.leases]
            if not idle:
                raise Overloaded(
                    f"{self._limit} models are loaded, which is the limit, and all are in use; try again later",
                    retry_after=5,
                )
            oldest = min(idle, key=lambda each: each.used)
            del self._residents[oldest.key]
            log.info("model %s unloaded to make room", oldest.key)
            self._let_go(oldest, force=False)

    def _let_go(self, resident: _Resident[T], *, force: bool) -> asyncio.Task[None]:
        self._residents = {
            key: each for key, each in self._residents.items() if each is not resident
        }

        already, resident.closed = resident.closed, True

        async def close() -> None:
            if already:
                return
            try:
                await self._close(resident.value, force)
            except Exception:
                log.exception("unloading %s failed", resident.key)

        task = asyncio.get_running_loop().create_task(close())
        self._closing.add(task)
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
            if not each.leases and each.keep_alive >= 0
        ]
        if due:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, min(due)) + 0.001, self.expire)


def _seen(task: asyncio.Task[_Resident[T]]) -> None:
    """A load whose every waiter has left may fail in peace."""
    if not task.cancelled():
        task.exception()
