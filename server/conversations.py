"""The shell of the dialects that cannot be resumed: one task reads, one drives the engine, one carries its events,
one writes. The dialect decides everything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server.context import HEARD, Context
from server.errors import RateLimited, Refused
from server.gate import Meter
from server.protocols.dialect import Close, Command, Commit, Dialect, End, Hear, Open, Say
from streaming.engine import Stream
from streaming.errors import OpenSpeechError, Overloaded
from streaming.types import RATE, Samples

log = logging.getLogger(__name__)

HEAVY = 64 * 2**10
"""Characters or bytes of a message that is read in a thread: its base64 alone would hold the loop for long."""
PIECE = RATE // 2
"""Samples that the engine is asked to take in one go, however long a message is."""
AHEAD = 30 * RATE
"""Samples that may wait for the engine while it loads a model or is behind; then messages are read more slowly."""
SLOWLY = 1.0
"""Seconds that one message is then held back; never for ever, because a peer whose pongs are not read looks dead."""
GRACE, TICK, TICKS = 1.0, 0.01, 10
"""Seconds for which audio on its way is still taken when the server stops. It ends early after so many ticks in a row
without a message: ticks and not their time, because in a busy loop what has arrived is not read at once."""
STALL = 10.0
"""Seconds that one message may take to leave; then the reader is taken for dead."""
UNREAD = 4096
"""Messages that wait for a slow reader; beyond, the conversation ends."""
GONE = 1006
"""Not sent, only logged: the client left."""


class _Outbox:
    """What is to be sent, in order; the last is a Close."""

    def __init__(self) -> None:
        self._waiting: deque[Say | Close] = deque()
        self._news = asyncio.Event()
        self._closed = False

    def put(self, message: Say | Close) -> None:
        """Queue; nothing is taken after a Close."""
        if self._closed:
            return
        if len(self._waiting) >= UNREAD:
            self._waiting.clear()
            message = Close(1008, f"{UNREAD} messages wait unread; read them faster")
        self._closed = isinstance(message, Close)
        self._waiting.append(message)
        self._news.set()

    def abandon(self) -> None:
        """Nobody reads any more."""
        self._waiting.clear()
        self._closed = False
        self.put(Close(GONE))

    async def take(self) -> Say | Close:
        """The next."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()


@dataclass(slots=True, eq=False)
class _Running:
    stream: Stream
    base: int
    """Samples that earlier streams of the conversation took."""
    drained: asyncio.Event


class Conversation:
    """One socket, one dialect, one stream of the engine at a time."""

    def __init__(self, socket: WebSocket, here: Context, dialect: Dialect, meter: Meter) -> None:
        self._socket = socket
        self._meter = meter
        self._here = here
        self._dialect = dialect
        self._outbox = _Outbox()
        self._inbox: asyncio.Queue[Open | Hear | Commit | End | Overloaded] = (
            asyncio.Queue()
        )  # bounded by AHEAD, see _read, and the engine's backlog
        self._backlog = here.engine.backlog
        self._waiting = 0  # samples in the inbox
        self._full = False  # no more audio is taken: what was heard is said, then the fault
        self._room = asyncio.Event()
        self._running: _Running | None = None
        self._streams: asyncio.Queue[_Running | None] = (
            asyncio.Queue()
        )  # at most two: the next opens when the last is drained
        self._heard = socket.scope.get("extensions", {}).get(HEARD, lambda: None)
        self._sent = 0
        self._begun = False
        self._arrived = False  # a message came; looked at only while the server stops
        self._reading = (
            asyncio.Lock()
        )  # a message is read in a thread; the server may stop meanwhile

    @property
    def begun(self) -> bool:
        """The engine took something."""
        return self._begun

    async def run(self) -> int:
        """From the accepted socket to its close; answers the close code."""
        loop = asyncio.get_running_loop()
        timer = None
        if self._dialect.limit is not None:
            timer = loop.call_later(
                self._dialect.limit, lambda: self._do(self._dialect.receive_limit())
            )
        work: list[asyncio.Task[None]] = []
        try:
            if self._here.draining:
                raise Overloaded("the server is stopping", retry_after=5)
            self._do(self._dialect.begin())
            work = [
                loop.create_task(self._guarded(part))
                for part in (self._read(), self._drive(), self._carry(), self._watch())
            ]
            return await self._write()
        except Overloaded as fault:
            self._do(self._dialect.fail(fault))
            return await self._write()
        finally:
            if timer is not None:
                timer.cancel()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            self._backlog.forget(self)
            if self._running is not None:
                await self._running.stream.aclose()

    async def _guarded(self, part: Coroutine[Any, Any, None]) -> None:
        """Any fault becomes what the dialect says of it."""
        try:
            await part
        except WebSocketDisconnect:
            self._outbox.abandon()
        except OpenSpeechError as fault:
            self._do(self._dialect.fail(fault))
        except Exception:
            log.exception("a conversation failed")
            self._do(self._dialect.fail(None))

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Say | Close):
                self._outbox.put(command)
            elif isinstance(command, Hear):
                self._keep(command)
            else:
                self._inbox.put_nowait(command)

    def _keep(self, audio: Hear) -> None:
        """Audio into the inbox. Where there is too much of it, the conversation ends with what came before."""
        if not len(audio.samples) or self._full:
            return
        self._heard()
        self._count(len(audio.samples))
        if not self._backlog.excess(self):
            self._inbox.put_nowait(audio)
            return
        self._count(-len(audio.samples))
        self._full = True
        fault = f"{self._waiting / RATE:.0f} s of audio wait for the engine; connect again later"
        self._inbox.put_nowait(Overloaded(fault, retry_after=30))

    def _count(self, samples: int) -> None:
        self._waiting += samples
        self._backlog.put(self, self._waiting)

    async def _read(self) -> None:
        """Messages to the dialect, for as long as they come."""
        while True:
            try:
                async with asyncio.timeout(self._dialect.patience):
                    message = await self._socket.receive()
            except TimeoutError:
                self._do(self._dialect.receive_nothing())
                continue
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            self._arrived = True
            if self._full:
                continue  # read on: its pings are answered, and that it leaves is noticed
            data: str | bytes | None = message.get("text")
            if data is None:
                data = message.get("bytes") or b""
            async with self._reading:
                if len(data) > HEAVY:
                    read = await asyncio.to_thread(self._dialect.read, data)
                else:
                    read = self._dialect.read(data)
                lag = self._waiting / RATE + (self._running.stream.lag if self._running else 0.0)
                self._do(self._dialect.receive(read, lag))
            if self._waiting > AHEAD:
                self._room.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(SLOWLY):
                        await self._room.wait()

    async def _drive(self) -> None:
        """Commands to the engine."""
        while True:
            command = await self._inbox.get()
            match command:
                case Open(options):
                    await self._finish()
                    stream = await self._here.engine.open_stream(options, admitted=self._begun)
                    self._begun = True
                    self._running = _Running(stream, self._sent, asyncio.Event())
                    self._streams.put_nowait(self._running)
                case Hear(samples):
                    for at in range(0, len(samples), PIECE):
                        await self._hear(samples[at : at + PIECE])
                case Commit(marker):
                    if self._running is not None:
                        await self._running.stream.commit(marker)
                case End():
                    await self._finish()
                    self._do(self._dialect.receive_end())
                case Overloaded() as fault:
                    await self._finish()
                    raise fault

    async def _hear(self, samples: Samples) -> None:
        self._count(-len(samples))
        if self._waiting <= AHEAD:
            self._room.set()
        if self._running is not None:
            self._sent += len(samples)
            try:
                await self._running.stream.send(samples)
                self._meter.hear(len(samples))
                await self._meter.ask()
            except (Overloaded, RateLimited, Refused):
                self._full = True
                await self._finish()  # what was heard is said first
                raise
            await asyncio.sleep(0)

    async def _watch(self) -> None:
        """Tell the dialect when the server stops, once the audio that was on its way is here."""
        await self._here.stopping.wait()
        until, quiet = time.monotonic() + GRACE, 0
        while quiet < TICKS and time.monotonic() < until:
            self._arrived = False
            await asyncio.sleep(TICK)
            quiet = 0 if self._arrived else quiet + 1
        async with self._reading:
            self._do(self._dialect.receive_stop())

    async def _finish(self) -> None:
        """End the open stream and wait until all its events are encoded."""
        if self._running is not None:
            await self._running.stream.end()
            await self._running.drained.wait()
            await self._running.stream.aclose()
            self._running = None

    async def _carry(self) -> None:
        """Events of one stream after the other to the dialect."""
        while (running := await self._streams.get()) is not None:
            async for event in running.stream:
                self._do(self._dialect.encode(event, running.base))
            running.drained.set()

    async def _write(self) -> int:
        """Messages to the client, and the close."""
        while True:
            message = await self._outbox.take()
            try:
                async with asyncio.timeout(STALL):
                    if isinstance(message, Say):
                        await self._socket.send_text(message.text)
                        continue
                    if message.code != GONE and (
                        self._socket.application_state is WebSocketState.CONNECTED
                    ):
                        await self._socket.close(message.code, message.reason[:120])
                    return message.code
            except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
                return GONE
