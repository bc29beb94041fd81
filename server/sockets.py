"""The WebSocket shell: one task reads, one writes, one carries events; none waits for a decode."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server import auth
from server.context import Context, context
from server.errors import classify
from server.protocols import native
from server.protocols.native import Audio, Commit, End, KeepAlive, Open, ProtocolError
from streaming.audio.pcm import Decoder
from streaming.audio.resample import Resampler
from streaming.engine import Stream
from streaming.errors import OpenSpeechError, Overloaded

log = logging.getLogger(__name__)

IDLE = 60.0
"""Seconds without any message after which a session is closed."""
ACK = 1.0
"""Seconds between acknowledgements while audio comes."""
STALL = 10.0
"""Seconds that one message may take to leave; then the reader is taken for dead."""
JOURNAL = 1024
"""Messages that wait for a slow reader; stale partials are replaced, so these are finals and the like. Beyond, the
session is closed."""
PROTOCOL, KEY_PREFIX = "open-speech", "open-speech-key."
"""Subprotocols: browsers cannot set headers, so a key may come as the second one."""


class Journal:
    """Messages on their way out. A newer partial of an utterance replaces one that has not left."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque()
        self._news = asyncio.Event()
        self._closed = False
        self._seq = 0
        self.shed = 0
        """Partials that were replaced."""

    def put(self, message: dict[str, Any]) -> None:
        """Queue. Raises Overloaded when the reader is hopelessly behind."""
        if message["type"] == "partial":
            for at, other in enumerate(self._waiting):
                if other["type"] == "partial" and other["utterance"] == message["utterance"]:
                    self._waiting[at] = message
                    self.shed += 1
                    return
        elif message["type"] == "ack" and self._waiting:
            return  # what waits carries a newer count, or another ack comes
        if len(self._waiting) >= JOURNAL:
            raise Overloaded("messages are not read fast enough")
        self._waiting.append(message)
        self._news.set()

    def close(self) -> None:
        """Nothing more will be put."""
        self._closed = True
        self._news.set()

    async def take(self) -> str | None:
        """The next message with its number, as text; None at the end."""
        while not self._waiting:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        message = self._waiting.popleft()
        kind = message.pop("type")
        numbered = {"type": kind, "seq": self._seq, **message}
        self._seq += 1
        return json.dumps(numbered, ensure_ascii=False)


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
        fault = native.error("a valid API key is needed", code="invalid_api_key")
        await _last_words(socket, fault, 1008)
        return
    here.working += 1
    try:
        await _Session(socket, here).run()
    finally:
        here.working -= 1


class _Session:
    """One conversation."""

    def __init__(self, socket: WebSocket, here: Context) -> None:
        self._socket = socket
        self._here = here
        self._reader = native.Reader()
        self._journal = Journal()
        self._id = "s_" + secrets.token_urlsafe(12)
        self._stream: Stream | None = None
        self._writer: native.Writer | None = None
        self._decoder: Decoder | None = None
        self._resampler: Resampler | None = None
        self._bytes = 0  # received and held for good
        self._acknowledged = 0.0
        self._code = 1000

    async def run(self) -> None:
        """From the first message to the close."""
        started = time.monotonic()
        sending = asyncio.create_task(self._send())
        receiving = asyncio.create_task(self._converse())
        try:
            await asyncio.wait([sending, receiving], return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():  # the reader is gone
                receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            self._journal.close()
            await asyncio.gather(sending, return_exceptions=True)
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
            if self._stream is not None:
                await self._stream.aclose()
            await _close(self._socket, self._code)
            log.info(
                "stream %s closed with %d after %.1f s, %d bytes of audio",
                self._id,
                self._code,
                time.monotonic() - started,
                self._bytes,
            )

    async def _converse(self) -> None:
        """Read, act, and turn every fault into its message and its close code."""
        try:
            async with asyncio.TaskGroup() as tasks:
                carrying: asyncio.Task[None] | None = None
                for command in self._reader.receive_query(self._socket.query_params.multi_items()):
                    await self._do(command)
                ended = False
                while not ended:
                    if carrying is None and self._stream is not None:
                        carrying = tasks.create_task(self._carry(self._stream))
                    for command in await self._receive():
                        await self._do(command)
                        ended = isinstance(command, End)
                if carrying is None and self._stream is not None:
                    tasks.create_task(self._carry(self._stream))
            assert self._writer is not None
            self._put(self._writer.end(self._bytes, "client"))
        except* WebSocketDisconnect:
            self._code = 1006
        except* ProtocolError as group:
            fault = _first(group)
            assert isinstance(fault, ProtocolError)
            code = 1009 if fault.code == "too_big" else 1008
            self._fail(native.error(fault.message, code=fault.code, param=fault.param), code)
        except* Overloaded as group:
            fault = _first(group)
            assert isinstance(fault, Overloaded)
            told = native.error(fault.message, code="overloaded", retry_after=fault.retry_after)
            self._fail(told, 1013)
        except* OpenSpeechError as group:
            fault = _first(group)
            assert isinstance(fault, OpenSpeechError)
            status, name = classify(fault)
            told = native.error(fault.message, code=name or "failed", param=fault.param)
            self._fail(told, 1008 if status < 500 else 1011)
        except* TimeoutError:
            told = native.error(
                f"nothing came for {IDLE:g} s; send audio or keepalive", code="idle_timeout"
            )
            self._fail(told, 1008)
        except* Exception as group:
            log.exception("stream %s failed", self._id, exc_info=group)
            self._fail(
                native.error("the server failed; its log says why", code="internal_error"), 1011
            )

    async def _receive(self) -> list[native.Command]:
        async with asyncio.timeout(IDLE):
            message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        try:
            if (data := message.get("bytes")) is not None:
                return self._reader.receive_bytes(data)
            return self._reader.receive_text(message.get("text") or "")
        except ProtocolError as fault:
            if self._stream is None or fault.code == "too_big":
                raise
            # A slip in the middle costs nobody a word: say what was expected, and go on.
            self._put(native.error(fault.message, code=fault.code, param=fault.param))
            return []

    async def _do(self, command: native.Command) -> None:
        match command:
            case Open(opening):
                if self._here.draining:
                    raise Overloaded("the server is stopping", retry_after=5)
                self._decoder = Decoder(opening.encoding, opening.channels)
                self._resampler = Resampler(opening.sample_rate)
                self._writer = native.Writer(self._id, opening)
                self._stream = await self._here.engine.open_stream(opening.options)
                self._put(self._writer.ready(self._stream.model))
                log.info("stream %s opened, model %s", self._id, self._stream.model)
            case Audio(data):
                assert self._decoder is not None
                assert self._resampler is not None
                assert self._stream is not None
                if len(data) > 64 * 1024:  # a second or more: longer than the loop may be held
                    samples = await asyncio.to_thread(self._samples, data)
                else:
                    samples = self._samples(data)
                await self._stream.send(samples)
                self._bytes += len(data)
                self._acknowledge()
            case Commit(marker):
                assert self._stream is not None
                await self._stream.commit(marker)
            case End():
                assert self._stream is not None
                assert self._resampler is not None
                tail = self._resampler.flush()
                if len(tail):
                    await self._stream.send(tail)
                await self._stream.end()
            case KeepAlive():
                pass

    def _samples(self, data: bytes) -> Any:
        assert self._decoder is not None
        assert self._resampler is not None
        return self._resampler.decode(self._decoder.decode(data))

    def _acknowledge(self) -> None:
        now = time.monotonic()
        if now - self._acknowledged >= ACK:
            assert self._writer is not None
            assert self._stream is not None
            self._acknowledged = now
            self._put(self._writer.ack(self._bytes, self._stream.lag))

    async def _carry(self, stream: Stream) -> None:
        """Events of the engine into the journal, until the last."""
        assert self._writer is not None
        async for event in stream:
            self._put(self._writer.event(event, self._bytes, stream.lag))

    async def _send(self) -> None:
        """Messages to the client; ends with the journal, or when the client reads no more."""
        while (text := await self._journal.take()) is not None:
            try:
                async with asyncio.timeout(STALL):
                    await self._socket.send_text(text)
            except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
                self._code = 1006
                return

    def _put(self, message: dict[str, Any]) -> None:
        self._journal.put(message)

    def _fail(self, message: dict[str, Any], code: int) -> None:
        self._code = code
        try:
            self._journal.put(message)
        except Overloaded:
            log.info("stream %s reads nothing; closing", self._id)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _origin_allowed(socket: WebSocket, here: Context) -> bool:
    """A browser page of another site may not open a socket here unless it is on the list."""
    origin = socket.headers.get("origin")
    if origin is None:
        return True
    if origin in here.settings.allow_origins or "*" in here.settings.allow_origins:
        return True
    return urlsplit(origin).netloc == socket.headers.get("host", "")


async def _last_words(socket: WebSocket, message: dict[str, Any], code: int) -> None:
    kind = message.pop("type")
    await socket.send_text(json.dumps({"type": kind, "seq": 0, **message}, ensure_ascii=False))
    await _close(socket, code)


async def _close(socket: WebSocket, code: int) -> None:
    if socket.application_state is WebSocketState.CONNECTED and code != 1006:
        try:
            await socket.close(code)
        except (RuntimeError, OSError):
            log.debug("the socket was closed already")


ROUTES = [WebSocketRoute("/v1/audio/transcriptions/stream", stream)]
