"""Who may come in, and how much: the key, its scopes, wrong keys by the thousand, and each caller's share."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Literal, Self, TypeAlias

from limits import RateLimitItemPerMinute
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.requests import HTTPConnection

from server import auth, keys
from server.errors import KeyMissing, KeyWrong, RateLimited, ScopeMissing
from server.keys import Allowance, Scope
from server.limits import CLIENTS, TENTH, Caller, Limits, Table
from server.settings import Settings
from streaming.types import RATE, Segment, Summary, Transcribed

log = logging.getLogger(__name__)

Needed: TypeAlias = Scope | Literal["any"]
"""What an endpoint asks of a key; `any`: that it is one."""


class Gate:
    """One server's. Lives on the loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises BadKeys."""
        self.keys = auth.Keys(settings.api_keys, settings.keys_file)
        usual = Allowance(
            settings.client_requests_per_minute,
            settings.client_streams,
            settings.client_audio_seconds_per_hour,
            settings.client_audio_seconds_per_day,
        )
        self.limits = Limits(usual, settings.limits_storage)
        self._failures = MovingWindowRateLimiter(Table())
        self._wrong = (
            RateLimitItemPerMinute(settings.wrong_keys_per_minute)
            if settings.wrong_keys_per_minute
            else None
        )
        self._known: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        # Keys that were right, with the address they came from: others there who guess must not lock them out.

    async def admit(
        self, connection: HTTPConnection, needed: Needed, *, owner: Caller | None = None
    ) -> Caller:
        """Who asks, counted as one request; `owner` answers for a client secret. Raises Refused or RateLimited.

        Headers that say what is left are in the connection's state, as `limits`.
        """
        address = network(connection)
        if owner is not None and owner.key is not None:
            self.check(owner)
            caller = owner
        elif self.keys.required and owner is None:
            caller = self.limits.of_key(await self._key(connection, address))
        else:
            caller = self.limits.of_address(address)
        if caller.key is not None and needed != "any" and needed not in caller.key.scopes:
            raise ScopeMissing(
                f"the key {caller.key.name} is good for {', '.join(sorted(caller.key.scopes))}; this needs the scope"
                f" {needed}"
            )
        connection.state.caller = caller
        connection.state.limits = await self.limits.request(caller)
        return caller

    def check(self, caller: Caller) -> None:
        """Raises KeyWrong if the caller's key has been taken away or is good for other things now."""
        if caller.key is not None and not self.keys.holds(caller.key):
            raise KeyWrong(
                "the key of this session was removed or has other scopes now; connect with another"
            )

    async def _key(self, connection: HTTPConnection, address: str) -> keys.Key:
        given = auth.presented(connection)
        if given is None:
            or_else = (
                ", or offer the subprotocols open-speech and open-speech-key.YOUR_KEY"
                if connection.scope["type"] == "websocket"
                else ""
            )
            raise KeyMissing(
                "you did not provide an API key; send it as a header: Authorization: Bearer YOUR_KEY"
                + or_else
            )
        mark = (address, keys.digest(given))
        if mark not in self._known:
            await self._patient(address)
        found = self.keys.find(given)
        if found is None:
            self._known.pop(mark, None)
            if self._wrong is not None:
                await self._failures.hit(self._wrong, address)
                if not await self._failures.test(self._wrong, address):
                    log.warning(
                        "%s sent %d wrong keys within a minute; it must wait",
                        address,
                        self._wrong.amount,
                    )
            raise KeyWrong(
                "the API key provided is not one of this server's; ask its operator for one"
            )
        self._known[mark] = None
        self._known.move_to_end(mark)
        if len(self._known) > CLIENTS:
            self._known.popitem(last=False)
        return found

    async def _patient(self, address: str) -> None:
        """Raises RateLimited where too many wrong keys came from; what comes then is not even looked at."""
        if self._wrong is None or await self._failures.test(self._wrong, address):
            return
        reset, _ = await self._failures.get_window_stats(self._wrong, address)
        wait = max(1, math.ceil(reset - time.time()))
        raise RateLimited(
            f"more than {self._wrong.amount} wrong keys a minute came from this address; try again in {wait} s",
            retry_after=wait,
        )

    async def open(self, socket: HTTPConnection, *, owner: Caller | None = None) -> Meter:
        """Let a live stream in. Whoever holds the answer closes it once. Raises Refused or RateLimited."""
        return await self.start(await self.admit(socket, "transcribe", owner=owner))

    async def start(self, caller: Caller) -> Meter:
        """A live stream of a caller that was admitted. Whoever holds the answer closes it once. Raises RateLimited."""
        await self.limits.heard(caller, 0)
        return Meter(self, caller, live=True)

    async def metered(
        self, connection: HTTPConnection, items: AsyncGenerator[Transcribed, None]
    ) -> AsyncGenerator[Transcribed, None]:
        """`items` of a recording, whose audio is counted as it is recognised. Raises RateLimited before the first where
        nothing is left; a recording that has begun is finished."""
        meter = Meter(self, connection.state.caller)
        await self.limits.heard(meter.caller, 0)
        async with aclosing(items):
            async for item in items:
                with suppress(RateLimited):
                    if isinstance(item, Segment):
                        await meter.reach(item.end)
                    elif isinstance(item, Summary):
                        await meter.reach(item.samples)
                        await meter.close()
                yield item


class Meter:
    """Counts the audio of one stream or recording."""

    def __init__(self, gate: Gate, caller: Caller, *, live: bool = False) -> None:
        """Raises RateLimited if `live` and the caller has as many streams as it may."""
        if live:
            gate.limits.take(caller)
        self._live = live
        self.caller = caller
        self._gate = gate
        self._heard = 0
        self._counted = 0  # samples, in whole tenths of a second

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *fault: object) -> None:
        await self.close()

    def hear(self, samples: int) -> None:
        """More was heard."""
        self._heard += samples

    @property
    def ready(self) -> bool:
        """`ask` has nothing to find out."""
        return self._heard - self._counted < RATE

    async def ask(self) -> None:
        """Whether more may be heard, by what was heard until now. Raises RateLimited once nothing is left, KeyWrong
        when the key was taken away."""
        if not self.ready:
            self._gate.check(self.caller)
            await self._count(self._heard // TENTH)

    async def reach(self, end: int) -> None:
        """So much was heard in all."""
        if end > self._heard:
            self.hear(end - self._heard)
            await self.ask()

    async def close(self) -> None:
        """No more comes; the rest counts too."""
        if self._live:
            self._live = False
            self._gate.limits.release(self.caller)
        with suppress(RateLimited):
            await self._count(-(-self._heard // TENTH))

    async def _count(self, tenths: int) -> None:
        more = tenths - self._counted // TENTH
        self._counted = tenths * TENTH
        if more > 0:
            await self._gate.limits.heard(self.caller, more)


def network(connection: HTTPConnection) -> str:
    """The client's address; of IPv6 the /64, all of which one household or machine has."""
    host = connection.client.host if connection.client is not None else "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def gate(connection: HTTPConnection) -> Gate:
    """The gate of the server that answers `connection`."""
    found: Gate = connection.app.state.gate
    return found
