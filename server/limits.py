"""How much each client may ask for: requests a minute, live streams at once, seconds of audio an hour and a day.

Windows are counted by the `limits` package, which can keep them in Redis for several servers. In memory they are kept
by `Table`, because the package's own storage has no bound and looks at every client whenever one asks.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.aio.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage
from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string
from limits.storage.base import TimestampedSlidingWindow

from server.configuration import Misconfigured
from server.errors import RateLimited
from server.keys import Allowance, Key
from streaming.types import RATE

log = logging.getLogger(__name__)

CLIENTS = 10_000
"""Clients whose windows are kept; beyond, those that asked least recently are forgotten. Whoever can come from so many
networks cannot be held by address anyway; the memory can."""
TENTH = RATE // 10
"""Samples of the unit in which audio is counted."""
PATIENCE = 1.0
"""Seconds that a storage elsewhere may take to answer."""
AWAY = 5.0
"""Seconds for which it is then not asked, so that not every request waits for it."""
COMPLAIN = 60.0
"""Seconds between two log lines about a storage that does not answer."""
MEMORY = "memory://"
REMOTE = ("redis", "rediss", "redis+unix")
"""Schemes of addresses that storages may have."""

T = TypeVar("T")


class Table(Storage, MovingWindowSupport, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """A storage of `limits` in memory, of bounded size. Its methods never wait, so they need no locks."""

    STORAGE_SCHEME = None

    def __init__(self, most: int = CLIENTS) -> None:
        super().__init__()
        self._most = most
        self._hits: OrderedDict[str, deque[float]] = OrderedDict()
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hits) + len(self._counts)

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        hits = self._window(key, expiry)
        if len(hits) + amount > limit:
            return False
        hits.extend([time.time()] * amount)
        self._hits[key] = hits
        self._hits.move_to_end(key)
        if len(self._hits) > self._most:
            self._hits.popitem(last=False)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        del limit
        hits = self._window(key, expiry)
        return (hits[0] if hits else time.time()), len(hits)

    def _window(self, key: str, expiry: int) -> deque[float]:
        """Moments of the hits that count; the list is kept only by who adds to it."""
        hits = self._hits.get(key)
        if hits is None:
            return deque()
        since = time.time() - expiry
        while hits and hits[0] <= since:
            hits.popleft()
        if not hits:
            del self._hits[key]
        return hits

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        count, until = self._counted(key)
        until = until or time.time() + expiry
        self._counts[key] = (count + amount, until)
        self._counts.move_to_end(key)
        if len(self._counts) > 4 * self._most:  # two windows of an hour, two of a day
            self._counts.popitem(last=False)
        return count + amount

    async def get(self, key: str) -> int:
        return self._counted(key)[0]

    async def get_expiry(self, key: str) -> float:
        return self._counted(key)[1] or time.time()

    def _counted(self, key: str) -> tuple[int, float]:
        count, until = self._counts.get(key, (0, 0.0))
        if until and until <= time.time():
            del self._counts[key]
            return 0, 0.0
        return count, until

    async def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        previous, left, current, _ = await self.get_sliding_window(key, expiry)
        if math.floor(previous * left / expiry + current) + amount > limit:
            return False
        _, now = self.sliding_window_keys(key, expiry, time.time())
        await self.incr(now, 2 * expiry, amount)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        now = time.time()
        before, current = self.sliding_window_keys(key, expiry, now)
        left = (1 - (now / expiry) % 1) * expiry
        previous = await self.get(before)
        return previous, left if previous else 0.0, await self.get(current), left + expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        for each in self.sliding_window_keys(key, expiry, time.time()):
            await self.clear(each)

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        count = len(self)
        self._hits.clear()
        self._counts.clear()
        return count

    async def clear(self, key: str) -> None:
        self._hits.pop(key, None)
        self._counts.pop(key, None)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a key, or an address where there are no keys."""

    id: str
    allowance: Allowance
    key: Key | None = None


@dataclass(frozen=True, slots=True)
class _Share:
    """What is left of one limit."""

    name: str
    quota: int
    left: int
    unit: str | None = None
    """None: requests."""
    window: int | None = None
    """Seconds; None: it is of what goes on at once."""
    wait: int | None = None
    """Seconds until there is more."""


def _headers(shares: Sequence[_Share]) -> dict[str, str]:
    """By draft-ietf-httpapi-ratelimit-headers-10; its list of units has none for audio, so that one is ours."""
    if not shares:
        return {}
    policies, states = [], []
    for each in shares:
        unit = f';qu="{each.unit}"' if each.unit is not None else ""
        window = f";w={each.window}" if each.window is not None else ""
        wait = f";t={each.wait}" if each.wait is not None else ""
        policies.append(f'"{each.name}";q={each.quota}{unit}{window}')
        states.append(f'"{each.name}";r={each.left}{wait}')
    return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(states)}


class Limits:
    """The counts of all callers."""

    def __init__(self, usual: Allowance, storage: str = MEMORY) -> None:
        """`usual` holds for whoever has no limits of its own. `storage` is an address as `limits` writes it."""
        self._usual = usual
        self._kept = kept = Table() if storage == MEMORY else _remote(storage)
        self._requests = MovingWindowRateLimiter(kept)
        # A moving window would keep an entry for every second of a day; two counters say nearly the same.
        self._audio = SlidingWindowCounterRateLimiter(kept)
        self._streams: Counter[str] = Counter()
        self._away = (
            -math.inf
        )  # until when the storage is not asked; in the past for ever while it answers
        self._complained = -math.inf

    async def aclose(self) -> None:
        """Let go of a storage elsewhere."""
        if not isinstance(self._kept, Table):
            client: Any = self._kept.bridge.storage  # type: ignore[attr-defined] # of the library's RedisStorage
            await client.aclose()

    def of_key(self, key: Key) -> Caller:
        """The caller that a key is."""
        own = dict(key.limits)
        allowance = Allowance(
            **{name: own.get(name, getattr(self._usual, name)) for name in Allowance.__slots__}
        )
        return Caller(f"key {key.name}", allowance, key)

    def of_address(self, address: str) -> Caller:
        """The caller that an address is."""
        return Caller(f"address {address}", self._usual)

    async def request(self, caller: Caller) -> dict[str, str]:
        """Count a request; answers headers that say what is left of all that is limited. Raises RateLimited."""
        limit = caller.allowance.requests_per_minute
        if limit is None:
            return _headers([*self._streams_of(caller), *await self._audio_of(caller)])
        item = RateLimitItemPerMinute(limit)
        good = await self._asked(self._requests.hit(item, caller.id), True)
        left, wait = await self._left(self._requests, item, caller)
        requests = _Share("requests", limit, left, window=item.get_expiry(), wait=wait)
        headers = _headers([requests, *self._streams_of(caller), *await self._audio_of(caller)])
        headers |= {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": f"{wait}s",
        }
        if not good:
            raise RateLimited(
                f"more than {limit} requests a minute came with this key or from this address;"
                f" try again in {wait} s",
                retry_after=wait,
                headers=headers,
            )
        return headers

    async def _left(
        self,
        limiter: MovingWindowRateLimiter | SlidingWindowCounterRateLimiter,
        item: RateLimitItem,
        caller: Caller,
    ) -> tuple[int, int]:
        """How many, and seconds until there are more."""
        stats = await self._asked(limiter.get_window_stats(item, caller.id), None)
        if stats is None:
            return item.amount, 1
        return max(0, stats.remaining), max(1, math.ceil(stats.reset_time - time.time()))

    def _streams_of(self, caller: Caller) -> Iterator[_Share]:
        limit = caller.allowance.streams
        if limit is not None:
            left = max(0, limit - self._streams[caller.id])
            yield _Share("streams", limit, left, unit="concurrent-requests")

    async def _audio_of(self, caller: Caller) -> list[_Share]:
        found = []
        for item, span in _audio(caller.allowance):
            left, wait = await self._left(self._audio, item, caller)
            name, window = f"audio-{span.split()[-1]}", item.get_expiry()
            found.append(_Share(name, item.amount // 10, left // 10, "audio-seconds", window, wait))
        return found

    def take(self, caller: Caller) -> None:
        """A live stream of `caller`'s opens; `release` it once. Raises RateLimited."""
        limit = caller.allowance.streams
        if limit is not None and self._streams[caller.id] >= limit:
            raise RateLimited(
                f"{limit} live streams are open with this key or from this address, the most it may have;"
                " end one first",
                retry_after=5,
                kind="streams",
            )
        self._streams[caller.id] += 1

    def release(self, caller: Caller) -> None:
        """A live stream of `caller`'s is over."""
        self._streams[caller.id] -= 1
        if not self._streams[caller.id]:
            del self._streams[caller.id]  # so that only open streams take memory

    async def heard(self, caller: Caller, tenths: int) -> None:
        """Count audio, in tenths of a second; 0 only asks. Raises RateLimited once there is nothing left."""
        fault: RateLimited | None = None
        for item, span in _audio(caller.allowance):
            asked = (
                self._audio.hit(item, caller.id, cost=tenths)
                if tenths
                else self._audio.test(item, caller.id)
            )
            if await self._asked(asked, True):
                continue
            stats = await self._asked(self._audio.get_window_stats(item, caller.id), None)
            if stats is None:
                continue
            if tenths and stats.remaining:
                # What was heard was heard: else a long piece would leave the rest for another long one.
                await self._asked(self._audio.hit(item, caller.id, cost=stats.remaining), True)
            wait = max(1, math.ceil(stats.reset_time - time.time()))
            fault = RateLimited(
                f"more than {item.amount // 10} seconds of audio {span} came with this key or from this address;"
                f" try again in {wait} s",
                retry_after=wait,
                kind="audio_seconds",
            )
        if fault is not None:
            raise fault

    async def _asked(self, answer: Coroutine[Any, Any, T], otherwise: T) -> T:
        """The storage's answer. One that cannot be had limits nobody: to be down is worse than to be generous."""
        if time.monotonic() < self._away:
            answer.close()
            return otherwise
        if self._away > -math.inf:
            self._away = time.monotonic() + AWAY  # one asks whether it is back; nobody waits beside
        try:
            async with asyncio.timeout(PATIENCE):  # the client has a limit for each read only
                found = await answer
        except Exception as error:
            self._away = time.monotonic() + AWAY
            if time.monotonic() - self._complained > COMPLAIN:
                self._complained = time.monotonic()
                # Its text may hold the address with its password.
                log.warning(
                    "limits_storage does not answer (%s); nothing is limited", type(error).__name__
                )
            return otherwise
        self._away = -math.inf
        return found


def _audio(allowance: Allowance) -> Iterator[tuple[RateLimitItem, str]]:
    if allowance.audio_seconds_per_hour is not None:
        yield RateLimitItemPerHour(allowance.audio_seconds_per_hour * 10), "an hour"
    if allowance.audio_seconds_per_day is not None:
        yield RateLimitItemPerDay(allowance.audio_seconds_per_day * 10), "a day"


def _remote(uri: str) -> Storage:
    scheme = uri.partition("://")[0]
    if scheme not in REMOTE:
        raise Misconfigured(
            f"limits_storage begins with {scheme[:20]!r}; it must be memory:// or one of"
            f" {', '.join(f'{each}://' for each in REMOTE)}"
        )
    if find_spec("redis") is None:
        raise Misconfigured(
            "limits_storage needs a package that is not installed; pip install 'open-speech-server[redis]'"
        )
    try:
        found = storage_from_string(
            f"async+{uri}",
            implementation="redispy",
            wrap_exceptions=True,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
        )
    except (ConfigurationError, ValueError):
        # The library's own sentence has the address in it, and that may have a password.
        raise Misconfigured(
            f"limits_storage is no address; expected is {scheme}://host:port/number"
        ) from None
    assert isinstance(found, Storage)
    return found
