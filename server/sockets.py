"""The WebSocket shell of the native dialect: for each connection one task reads and one writes.

What a session is, and what happens to it while nobody is connected, is in `sessions`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from starlette.routing import WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server import auth, logs
from server.context import HEARD, PARTING, Context, Parting, context
from server.errors import RateLimited, Refused
from server.gate import Meter, gate
from server.journal import unnumbered
from server.limits import Caller
from server.protocols import native
from server.protocols.native import KeepAlive, Open, ProtocolError, Resume
from server.sessions import Part, Session, Sessions, complaint, explained, failed, owner
from streaming.audio import live
from streaming.backlog import BYTES
from streaming.engine import Stream
from streaming.errors import OpenSpeechError, Overloaded

log = logging.getLogger(__name__)

EARLY = 0.05
"""Seconds before its time that a timer may fire: loops count in milliseconds of their own."""
STALL = 15.0
"""Seconds that one message may take to leave; then the reader is taken for dead."""
PROTOCOL = "open-speech"
"""The subprotocol. Browsers cannot set headers, so a key may be offered as a second one."""

GRACE, LULL = 1.0, 0.1
"""Seconds for which audio on its way is still taken when the server stops, and of silence that end them early."""
EARLY_BYTES = 2**20
"""Of messages that are read while a model loads: half a minute of audio. Beyond, they wait with the sender, and that it
leaves is noticed once the model is there."""
GOODBYE = 5.0
"""Seconds that the last words to a peer may take where no session waits for it."""
STOPPING = "the server is stopping; connect again in a moment"
REPLACED = "another connection resumed this session; only that one goes on"


async def stream(socket: WebSocket) -> None:
    """`/v1/audio/transcriptions/stream`."""
    here = context(socket)
    await socket.accept(PROTOCOL if PROTOCOL in socket.scope.get("subprotocols", []) else None)
    try:
        caller = await gate(socket).admit(socket, "transcribe")
    except (Refused, RateLimited) as fault:
        told, code = explained(fault)
        with here.metrics.session("native") as ending:
            ending.code(code, begun=False)
        await _last_words(socket, told, code)
        return
    here.working += 1
    try:
        await _Connection(socket, here, caller).run()
    finally:
        here.working -= 1


class _Refusal(Exception):
    """The connection ends without a session: what the client is told, and the close code."""

    def __init__(self, message: dict[str, Any], code: int) -> None:
        super().__init__(message["message"])
        self.message = message
        self.code = code


class _Connection:
    """One socket: it opens a session or resumes one, carries messages both ways, and leaves it as it is."""

    def __init__(self, socket: WebSocket, here: Context, caller: Caller) -> None:
        self._socket = socket
        self._here = here
        self._caller = caller
        self._sessions: Sessions = socket.app.state.sessions
        self._owner = owner(auth.presented(socket))
        self._reader = native.Reader(here.settings.language)
        self._session: Session | None = None
        self._patience: asyncio.Timeout | None = None  # while a message is waited for
        self._stopping: float | None = None  # until when audio is still taken, if the server stops
        self._early: deque[Message] = deque()  # what came while the session opened
        self._until = time.monotonic() + here.settings.max_stream_seconds
        self._sending: asyncio.Task[None] | None = None
        self._heard = socket.scope.get("extensions", {}).get(HEARD, lambda: None)
        self._done = asyncio.Event()
        self._replaced = False
        self._left = False  # the client has said goodbye, or all it waited for
        self._last: tuple[dict[str, Any], int] | None = None  # an error beside the journal
        self._heard_all = False  # the journal is at its end
        self._parting: asyncio.Future[Parting] | None = socket.scope.get("extensions", {}).get(
            PARTING
        )

    async def run(self) -> None:
        """From the first message to the close."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                work = [
                    tasks.create_task(self._guarded(self._converse())),
                    tasks.create_task(self._watch()),
                    tasks.create_task(self._notice()),
                ]
                await self._done.wait()
                if self._sending is not None:
                    work.append(self._sending)
                for task in work:
                    task.cancel()
            await self._part()
        finally:
            self._sending = None  # a cancelled task remembers us in a circle
            self._here.engine.backlog.forget(self)
            if self._session is not None:
                logs.stream_id.set(self._session.name)
                self._session.detach(self, over=self._left)

    async def replace(self) -> None:
        """See `Connection.replace`."""
        self._replaced = True
        self._last = complaint(REPLACED, code="replaced"), 1008
        self._done.set()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    async def _part(self) -> None:
        """The last words, and the close."""
        if self._last is not None:
            if self._session is None:
                with self._here.metrics.session("native") as ending:
                    ending.code(self._last[1], begun=False)
            await _last_words(self._socket, *self._last)
        elif self._heard_all:
            assert self._session is not None
            await _close(self._socket, self._session.code, self._session.why)
            # The client may have lost the connection just before its last words: only its answer tells.
            if (parting := self._parting) is not None:
                async with asyncio.TaskGroup() as tasks:
                    stopping = tasks.create_task(self._here.stopping.wait())
                    either: list[asyncio.Future[Any]] = [parting, stopping]
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    stopping.cancel()
                self._left = parting.done() and parting.result() is Parting.ANSWERED

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run, and turn what ends the connection into its last message."""
        try:
            await work
        except WebSocketDisconnect as gone:
            self._left = gone.code == 1000
        except _Refusal as refusal:
            self._last = refusal.message, refusal.code
        except OpenSpeechError as fault:
            self._last = explained(fault)
        except Exception:
            log.exception("a connection failed")
            self._last, self._left = (failed(), 1011), True
        self._done.set()

    # What comes in.

    async def _converse(self) -> None:
        """Do what the client says until it, the server or a limit ends the session."""
        query = self._socket.query_params.multi_items()
        options = [(name, value) for name, value in query if name not in auth.QUERY]
        for opening in self._reader.receive_query(options):
            await self._do(opening)
        while self._session is None or not self._session.ended:
            try:
                message = await self._receive()
            except TimeoutError:
                await self._finish()
                break
            for command in self._commands(message):
                await self._do(command)
        await self._discard()

    async def _receive(self) -> Message:
        """The next message. Raises TimeoutError when the session is to end without one."""
        wait, now = self._here.settings.stream_idle_seconds, time.monotonic()
        until = self._until if self._session is None else self._session.until
        if self._stopping is not None:
            wait, until = LULL, self._stopping
        if now >= until:
            raise TimeoutError
        try:
            async with asyncio.timeout(min(wait, until - now)) as self._patience:
                message = await self._next()
        finally:
            self._patience = None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if message.get("bytes"):
            self._heard()
        return message

    async def _next(self) -> Message:
        if not self._early:
            return await self._socket.receive()
        message = self._early.popleft()
        if not self._early:
            self._here.engine.backlog.forget(self)
        return message

    async def _finish(self) -> None:
        """The session ends though the client did not say so. Raises _Refusal if there is none."""
        settings, session = self._here.settings, self._session
        if self._stopping is not None:
            if session is None:
                raise _Refusal(complaint(STOPPING, code="stopping", retry_after=5), 1012)
            part = Part("restart", 1012)
        elif time.monotonic() >= (self._until if session is None else session.until) - EARLY:
            told = complaint(
                f"the session has lasted {settings.max_stream_seconds:g} s, the longest allowed here;"
                " go on in a new one with offset",
                code="session_limit",
            )
            part = Part("limit", 1008, told)
        else:
            told = complaint(
                f"nothing came for {settings.stream_idle_seconds:g} s; send audio or"
                ' {"type": "keepalive"}',
                code="idle_timeout",
            )
            part = Part("idle", 1008, told)
        if session is None:
            assert part.told is not None
            raise _Refusal(part.told, part.code)
        await session.do(part, self)

    def _commands(self, message: Message) -> list[native.Command | Part]:
        try:
            return [*self._parsed(message)]
        except ProtocolError as fault:
            if self._session is None:
                raise
            if fault.code == "too_big":
                told, code = explained(fault)
                return [Part("error", code, told)]
            # A slip in the middle costs nobody a word: say what was expected, and go on.
            self._session.tell(explained(fault)[0])
            return []

    def _parsed(self, message: Message) -> list[native.Command]:
        if (data := message.get("bytes")) is not None:
            return self._reader.receive_bytes(data)
        return self._reader.receive_text(message.get("text") or "")

    async def _do(self, command: native.Command | Part) -> None:
        match command:
            case Open(opening):
                await self._open(opening)
            case Resume(session, last_event):
                await self._resume(session, last_event)
            case KeepAlive():
                pass
            case _:
                assert self._session is not None
                await self._session.do(command, self)

    async def _open(self, opening: native.Opening) -> None:
        self._refuse_while_stopping()
        source = live.source(opening.encoding, opening.sample_rate, opening.channels)
        try:
            stream, meter = await self._attended(opening)
        except BaseException:
            source.close()
            raise
        session = Session(self._sessions, stream, source, opening, self._reader, self._owner, meter)
        if self._stopping is not None:  # it stopped while the model loaded; the audio waits unread
            self._stopping = session.stop_at = time.monotonic() + GRACE
        self._sessions.add(session)
        self._session = session
        logs.stream_id.set(session.name)
        session.begin(self)
        self._sending = self._tasks.create_task(self._send(None))

    async def _attended(self, opening: native.Opening) -> tuple[Stream, Meter]:
        """Admitted, which may take the loading of a model, or its download; given up if the client leaves meanwhile."""
        try:
            async with asyncio.timeout(None) as given_up:
                listening = asyncio.create_task(self._listen(given_up))
                try:
                    admitted = await self._admitted(opening)
                    given_up.reschedule(None)  # from here on it would leak what was opened
                    return admitted
                finally:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
        except TimeoutError:
            if not given_up.expired():
                raise
        log.info("a client left before its stream had opened")
        raise WebSocketDisconnect(self._early[-1].get("code", 1005))

    async def _listen(self, given_up: asyncio.Timeout) -> None:
        """Read on, and keep what is read for later."""
        held = 0
        while held < EARLY_BYTES:
            message = await self._socket.receive()
            self._early.append(message)
            if message["type"] == "websocket.disconnect":
                given_up.reschedule(asyncio.get_running_loop().time())
                return
            if message.get("bytes"):
                self._heard()
            held += len(message.get("bytes") or message.get("text") or "")
            self._here.engine.backlog.put(self, held // BYTES)

    async def _admitted(self, opening: native.Opening) -> tuple[Stream, Meter]:
        while True:  # another connection may take the place first; each round ends a session
            try:
                return await self._begin(opening)
            except Overloaded as full:
                if not await self._make_room(full):
                    raise

    async def _begin(self, opening: native.Opening) -> tuple[Stream, Meter]:
        meter = await gate(self._socket).start(self._caller)
        try:
            return await self._here.engine.open_stream(opening.options), meter
        except BaseException:
            await meter.close()
            raise

    async def _make_room(self, full: Overloaded) -> bool:
        """Where streams are counted, one whose client is away gives its place to one who is here: who comes back goes
        on in a new session. Of its own share nobody but the caller itself gives."""
        if isinstance(full, RateLimited):
            return full.kind == "streams" and await self._sessions.yield_one(self._caller)
        taken = self._here.engine.pulse().streams >= self._here.settings.max_streams
        return taken and await self._sessions.yield_one()

    async def _resume(self, name: str, last_event: int) -> None:
        self._refuse_while_stopping()
        session = self._sessions.find(name, self._owner)
        ready = await session.resume(self, last_event)
        self._session, self._reader = session, session.reader
        logs.stream_id.set(session.name)
        if self._replaced:  # by yet another one, in the meantime
            return
        session.stop_at = self._stopping
        self._sending = self._tasks.create_task(self._send(unnumbered(ready)))

    def _refuse_while_stopping(self) -> None:
        if self._here.draining:
            raise _Refusal(complaint(STOPPING, code="stopping", retry_after=5), 1012)

    async def _discard(self) -> None:
        """Read on while the last words leave: a peer that goes away is noticed, and one that talks on is told."""
        session = self._session
        assert session is not None
        told = session.reason != "client"
        while True:
            message = await self._next()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            try:
                if not told:
                    self._parsed(message)
            except ProtocolError as fault:
                told = True
                session.tell(explained(fault)[0])

    async def _watch(self) -> None:
        """Wake the reader when the server stops."""
        await self._here.stopping.wait()
        self._stopping = time.monotonic() + GRACE
        if self._session is not None:
            self._session.stop_at = self._stopping
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time() + LULL)

    async def _notice(self) -> None:
        """The session waits for its client from the moment the connection breaks: the reader may be long at what came
        before."""
        if self._parting is None:
            return
        await asyncio.wait([self._parting])
        if self._parting.result() is Parting.GONE and self._session is not None:
            self._session.lose(self)

    # What goes out.

    async def _send(self, first: str | None) -> None:
        """Messages to the client; ends with the journal, or when the client reads no more."""
        session = self._session
        assert session is not None
        text = first
        try:
            while text is not None or (text := await session.journal.take()) is not None:
                async with asyncio.timeout(STALL):
                    await self._socket.send_text(text)
                text = None
            self._heard_all = True
        except TimeoutError:
            pass
        except (WebSocketDisconnect, RuntimeError, OSError):
            return  # the reader takes what came before the peer went, and sees how it went
        self._done.set()


async def _last_words(socket: WebSocket, message: dict[str, Any], code: int) -> None:
    """Say why, where no journal does."""
    with suppress(WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
        async with asyncio.timeout(GOODBYE):
            await socket.send_text(unnumbered(message))
    await _close(socket, code, message["code"])


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    """Close, unless the peer is gone already: it may go at any moment."""
    if socket.application_state is WebSocketState.CONNECTED:
        with suppress(WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE):
                await socket.close(code, reason)


ROUTES = [WebSocketRoute("/v1/audio/transcriptions/stream", stream)]
