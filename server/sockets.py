"""The WebSocket shell of the native dialect: one task reads, one writes, one carries events."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from starlette.routing import WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server import auth, logs
from server.context import Context, context
from server.errors import classify
from server.journal import Journal, Unread
from server.protocols import native
from server.protocols.native import Audio, Commit, End, KeepAlive, Open, ProtocolError
from streaming.audio import live
from streaming.audio.live import Source
from streaming.engine import Stream
from streaming.errors import AudioError, InputError, OpenSpeechError, Overloaded
from streaming.types import Samples

log = logging.getLogger(__name__)

ACK = 1.0
"""Seconds between acknowledgements while audio comes."""
STALL = 15.0
"""Seconds that one message may take to leave; then the reader is taken for dead."""
PROTOCOL, KEY_PREFIX = "open-speech", "open-speech-key."
"""Subprotocols: browsers cannot set headers, so a key may come as the second one."""

GRACE, LULL = 1.0, 0.1
"""Seconds for which audio on its way is still taken when the server stops, and of silence that end them early."""
STOPPING = "the server is stopping; connect again in a moment"

Reason: TypeAlias = Literal["client", "restart", "idle", "limit", "error"]
"""Why a session ended, as `end` tells it."""

_MEDIA = ThreadPoolExecutor(4, thread_name_prefix="live media")
# Containers are decoded here; only what one message completes, so that four threads serve many streams.


async def stream(socket: WebSocket) -> None:
    """`/v1/audio/transcriptions/stream`."""
    here = context(socket)
    offered = socket.scope.get("subprotocols", [])
    if not _origin_allowed(socket, here):
        await socket.close(1008, "origin not allowed")
        return
    await socket.accept(PROTOCOL if PROTOCOL in offered else None)
    key = auth.presented(socket) or next(
        (each.removeprefix(KEY_PREFIX) for each in offered if each.startswith(KEY_PREFIX)), None
    )
    if not socket.app.state.keys.accept(key):
        message = (
            "an API key is needed; send it as a header (Authorization: Bearer KEY) or offer the subprotocols"
            f" {PROTOCOL} and {KEY_PREFIX}KEY"
            if key is None
            else "the API key provided is not one of this server's; ask its operator for one"
        )
        await _last_words(socket, native.error(message, code="invalid_api_key"), 1008)
        return
    here.working += 1
    try:
        with here.metrics.session("native") as ending:
            session = _Session(socket, here)
            logs.stream_id.set(session.id)
            await session.run()
            ending.code(session.code, begun=session.begun)
    finally:
        here.working -= 1


class _Refusal(Exception):
    """The session ends before it began: what the client is told, and the close code."""

    def __init__(self, message: dict[str, Any], code: int) -> None:
        super().__init__(message["message"])
        self.message = message
        self.code = code


class _Session:
    """One conversation. It is over when the journal is closed and all of it has left, or the peer is gone."""

    def __init__(self, socket: WebSocket, here: Context) -> None:
        self._socket = socket
        self._here = here
        self._reader = native.Reader(here.settings.language)
        self._journal = Journal()
        self.id = "s_" + secrets.token_urlsafe(12)
        self._stream: Stream | None = None
        self._writer: native.Writer | None = None
        self._source: Source | None = None
        self._bytes = 0  # received and held for good
        self._told = 0  # of them, by an ack
        self._told_at = 0.0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.Timeout | None = None  # while a message is waited for
        self._stopping: float | None = None  # until when audio is still taken, if the server stops
        self._until = time.monotonic() + here.settings.max_stream_seconds
        self._reason: Reason = "client"
        self._code = 1000
        self._work: list[asyncio.Task[None]] = []

    @property
    def code(self) -> int:
        """Of the close."""
        return self._code

    @property
    def begun(self) -> bool:
        """The engine took it."""
        return self._stream is not None

    async def run(self) -> None:
        """From the first message to the close."""
        started = time.monotonic()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._start(self._converse())
                self._start(self._watch())
                await self._send()
                for task in self._work:
                    task.cancel()
        finally:
            if self._ack_timer is not None:
                self._ack_timer.cancel()
            if self._source is not None:
                self._source.close()
            if self._stream is not None:
                await self._stream.aclose()
            await _close(self._socket, self._code)
            log.info(
                "stream %s closed with %d after %.1f s, %d bytes of audio, %d partials shed",
                self.id,
                self._code,
                time.monotonic() - started,
                self._bytes,
                self._journal.shed,
            )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._work.append(self._tasks.create_task(self._guarded(work)))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run, and turn a fault that ends the session at once into its message and its close code."""
        try:
            await work
        except WebSocketDisconnect:
            self._hang_up(None, 1006)
        except _Refusal as refusal:
            self._hang_up(refusal.message, refusal.code)
        except OpenSpeechError as fault:
            self._hang_up(*_explained(fault))
        except Exception:
            log.exception("stream %s failed", self.id)
            told = native.error("the server failed; its log says why", code="internal_error")
            self._hang_up(told, 1011)

    def _hang_up(self, last: dict[str, Any] | None, code: int) -> None:
        self._code = code
        self._journal.close(last)

    # What comes in.

    async def _converse(self) -> None:
        """Take messages in until somebody ends the session; then what was heard becomes text."""
        try:
            await self._listen()
            await self._finish()
        except InputError as fault:
            if self._stream is None:
                raise
            # What came before the fault is good: the session says what is wrong, and then what it heard.
            message, self._code = _explained(fault)
            self._reason = "error"
            self._journal.put(message)
            await self._stream.end()
        await self._discard()

    async def _listen(self) -> None:
        """Do what the client says until it, the server or a limit ends the session."""
        for command in self._reader.receive_query(self._socket.query_params.multi_items()):
            await self._do(command)
        while True:
            try:
                message = await self._receive()
            except TimeoutError:
                self._part()
                return
            for command in self._commands(message):
                await self._do(command)
                if isinstance(command, End):
                    return

    async def _receive(self) -> Message:
        """The next message. Raises TimeoutError when the session is to end without one."""
        wait, now = self._here.settings.stream_idle_seconds, time.monotonic()
        until = self._until
        if self._stopping is not None:
            wait, until = LULL, self._stopping
        if now >= until:
            raise TimeoutError
        try:
            async with asyncio.timeout(min(wait, until - now)) as self._patience:
                message = await self._socket.receive()
        finally:
            self._patience = None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return message

    def _part(self) -> None:
        """The session ends though the client did not say so. Raises _Refusal if it had not begun."""
        settings = self._here.settings
        told: dict[str, Any] | None = None
        if self._stopping is not None:
            self._reason, self._code = "restart", 1012
            if self._stream is None:
                told = native.error(STOPPING, code="stopping", retry_after=5)
        elif time.monotonic() >= self._until:
            self._reason, self._code = "limit", 1008
            told = native.error(
                f"the session has lasted {settings.max_stream_seconds:g} s, the longest allowed here;"
                " go on in a new one with offset",
                code="session_limit",
            )
        else:
            self._reason, self._code = "idle", 1008
            told = native.error(
                f"nothing came for {settings.stream_idle_seconds:g} s; send audio or"
                ' {"type": "keepalive"}',
                code="idle_timeout",
            )
        if self._stream is None:
            assert told is not None
            raise _Refusal(told, self._code)
        if told is not None:
            self._journal.put(told)

    def _commands(self, message: Message) -> list[native.Command]:
        try:
            return self._parsed(message)
        except ProtocolError as fault:
            if self._stream is None or fault.code == "too_big":
                raise
            # A slip in the middle costs nobody a word: say what was expected, and go on.
            self._journal.put(_explained(fault)[0])
            return []

    def _parsed(self, message: Message) -> list[native.Command]:
        if (data := message.get("bytes")) is not None:
            return self._reader.receive_bytes(data)
        return self._reader.receive_text(message.get("text") or "")

    async def _do(self, command: native.Command) -> None:
        match command:
            case Open(opening):
                await self._open(opening)
            case Audio(data):
                await self._hear(data)
            case Commit(marker):
                assert self._stream is not None
                await self._stream.commit(marker)
            case KeepAlive() | End():
                pass

    async def _open(self, opening: native.Opening) -> None:
        if self._here.draining:
            raise _Refusal(native.error(STOPPING, code="stopping", retry_after=5), 1012)
        self._source = live.source(opening.encoding, opening.sample_rate, opening.channels)
        self._writer = native.Writer(self.id, opening)
        self._stream = await self._here.engine.open_stream(opening.options)
        if self._stopping is not None:  # it stopped while the model loaded; the audio waits unread
            self._stopping = time.monotonic() + GRACE
        self._journal.put(self._writer.ready(self._stream.model))
        self._start(self._carry(self._stream, self._writer))
        log.info("stream %s opened, model %s", self.id, self._stream.model)

    async def _hear(self, data: bytes) -> None:
        """Audio, in pieces that hold the loop only briefly; each counts as received once the engine has it."""
        assert self._source is not None
        size = self._source.piece or len(data)
        for at in range(0, len(data), size):
            if self._stopping is not None and time.monotonic() >= self._stopping:
                return  # the client knows by `received` where to go on
            piece = data[at : at + size]
            await self._pour(self._source.decode(piece))
            self._bytes += len(piece)
            self._acknowledge()
            await asyncio.sleep(0)

    async def _pour(self, samples: Iterator[Samples]) -> None:
        """Into the engine, which lets us wait when it is behind."""
        assert self._source is not None
        assert self._stream is not None
        loop = asyncio.get_running_loop()
        while True:
            if self._source.blocking:
                found = await loop.run_in_executor(_MEDIA, next, samples, None)
            else:
                found = next(samples, None)
            if found is None:
                return
            if len(found):
                await self._stream.send(found)

    async def _finish(self) -> None:
        """No more audio."""
        assert self._source is not None
        assert self._stream is not None
        await self._pour(self._source.flush())
        await self._stream.end()

    async def _discard(self) -> None:
        """Read on while the last words leave: a peer that goes away is noticed, and one that talks on is told."""
        told = self._reason != "client"
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            try:
                if not told:
                    self._parsed(message)
            except ProtocolError as fault:
                told = True
                self._journal.put(_explained(fault)[0])

    async def _watch(self) -> None:
        """Wake the reader when the server stops."""
        await self._here.stopping.wait()
        self._stopping = time.monotonic() + GRACE
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time() + LULL)

    # What goes out.

    async def _carry(self, stream: Stream, writer: native.Writer) -> None:
        """Events of the engine into the journal, and the end after the last."""
        async for event in stream:
            self._journal.put(writer.event(event, self._bytes, stream.lag))
        self._journal.close(writer.end(self._bytes, self._reason))

    def _acknowledge(self) -> None:
        """Once a second while audio comes, and once after it."""
        wait = self._told_at + ACK - time.monotonic()
        if wait <= 0:
            self._ack()
        elif self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(wait, self._ack)

    def _ack(self) -> None:
        assert self._writer is not None
        assert self._stream is not None
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._told < self._bytes:
            self._told, self._told_at = self._bytes, time.monotonic()
            with suppress(Unread):  # the next message that is put ends the session
                self._journal.put(self._writer.ack(self._bytes, self._stream.lag))

    async def _send(self) -> None:
        """Messages to the client; ends with the journal, or when the client reads no more."""
        while (text := await self._journal.take()) is not None:
            try:
                async with asyncio.timeout(STALL):
                    await self._socket.send_text(text)
            except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
                self._code = 1006
                return


def _explained(fault: OpenSpeechError) -> tuple[dict[str, Any], int]:
    """The message about a fault, and the close code if it ends the session."""
    match fault:
        case ProtocolError():
            told = native.error(fault.message, code=fault.code, param=fault.param)
            return told, 1009 if fault.code == "too_big" else 1008
        case Unread():
            return native.error(fault.message, code="slow_reader"), 1008
        case Overloaded():
            told = native.error(fault.message, code="overloaded", retry_after=fault.retry_after)
            return told, 1013
        case _:
            param = None if isinstance(fault, AudioError) else fault.param
            told = native.error(fault.message, code=classify(fault)[1] or "failed", param=param)
            return told, 1008 if isinstance(fault, InputError) else 1011


def _origin_allowed(socket: WebSocket, here: Context) -> bool:
    """A browser page of another site may not open a socket here unless it is on the list."""
    origin = socket.headers.get("origin")
    if origin is None:
        return True
    if origin in here.settings.allow_origins or "*" in here.settings.allow_origins:
        return True
    return urlsplit(origin).netloc == socket.headers.get("host", "")


async def _last_words(socket: WebSocket, message: dict[str, Any], code: int) -> None:
    """Say why, before any session exists."""
    journal = Journal()
    journal.close(message)
    text = await journal.take()
    assert text is not None
    with suppress(WebSocketDisconnect, RuntimeError, OSError):
        await socket.send_text(text)
    await _close(socket, code)


async def _close(socket: WebSocket, code: int) -> None:
    """Close, unless the peer is gone already: it may go at any moment."""
    if socket.application_state is WebSocketState.CONNECTED and code != 1006:
        with suppress(WebSocketDisconnect, RuntimeError, OSError):
            await socket.close(code)


ROUTES = [WebSocketRoute("/v1/audio/transcriptions/stream", stream)]
