"""The asyncio face: one task owns the connections of a stream, whoever sends and whoever listens."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import suppress
from ssl import SSLContext
from types import TracebackType
from typing import Self, Unpack

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
)

from open_speech_client.address import address, local
from open_speech_client.errors import (
    ConnectionLost,
    OpenSpeechError,
    Overloaded,
    Refused,
    StreamClosed,
    Unreachable,
)
from open_speech_client.events import Ack, Event, Final, Partial
from open_speech_client.options import Options
from open_speech_client.protocol import Conversation, State, refusal
from open_speech_client.samples import Audio, encoded

ROOM = 256 * 1024
"""Bytes of audio that wait for the connection; `send` waits when there are more."""
QUIET = 15.0
"""Seconds without a message after which a keep-alive goes out; servers close after a minute."""
LONGEST = 2**24
"""Bytes of the longest message a server may send: a final with the times of all its words has some thousand."""
HUSH = 5.0
"""Seconds without a message after which the server is asked whether it is there, and for which its answer may take.
While audio is sent it acknowledges every second, so a connection that died without a word is noticed in ten."""
GOODBYE = 2.0
"""Seconds that a server may take to close."""
PATIENCE = 30.0
"""Seconds in which a broken connection must be back."""
FIRST_DELAY, LAST_DELAY = 0.25, 4.0
"""Seconds between tries to come back; each is twice the one before, give or take a quarter."""
SPREAD = 0.1
"""Seconds within which the first try comes, by chance: a server that restarts had many clients."""


def async_connect(
    url: str = "http://localhost:8100",
    *,
    key: str | None = None,
    timeout: float = 120.0,
    reconnect: float = PATIENCE,
    ssl: SSLContext | None = None,
    **options: Unpack[Options],
) -> AsyncStream:
    """A stream on the server at `url`, to be entered with `async with`.

    Entering waits until the server is ready, `timeout` seconds at most: it may have to load the model. A connection
    that breaks is replaced without loss if that succeeds within `reconnect` seconds; 0 raises at once. `ssl` says whom
    to trust where a server's certificate is its own.
    """
    return AsyncStream(url, key, timeout, reconnect, ssl, options)


class AsyncStream:
    """Audio in, events out. Iterate it for events; it ends after End, or raises what ended it."""

    def __init__(
        self,
        url: str,
        key: str | None,
        timeout: float,
        reconnect: float,
        ssl: SSLContext | None,
        options: Options,
    ) -> None:
        self._address = address(url)
        self._key = key.strip() if key else None
        self._timeout = timeout
        self._ssl = ssl
        self._patience = reconnect
        self._encoding = options.get("encoding") or "pcm_s16le"
        self._conversation = Conversation(options)
        # Bounded by what is said: finals wait for the user, partials and acks that wait are replaced by newer ones.
        self._events: deque[Event] = deque()
        self._owner: asyncio.Task[None] | None = None
        self._to_send = asyncio.Event()
        self._changed = asyncio.Condition()
        self._closed = False
        self._heard = 0.0  # when the last message came

    @property
    def received(self) -> int:
        """Bytes that the server holds."""
        return self._conversation.received

    async def __aenter__(self) -> Self:
        self._owner = asyncio.create_task(self._own(), name="open-speech stream")
        try:
            async with asyncio.timeout(self._timeout):
                await self._until(lambda: self._conversation.session is not None)
        except TimeoutError:
            await self.aclose()
            raise self._late() from None
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def send(self, audio: Audio) -> None:
        """Append audio: bytes in the stream's encoding, or samples. Waits while the connection is slow or away."""
        self._check()
        self._conversation.send(encoded(audio, self._encoding))
        self._to_send.set()
        if self._conversation.waiting > ROOM:
            await self._until(lambda: self._conversation.waiting <= ROOM)

    async def commit(self, marker: str | None = None) -> None:
        """End the utterance here. With a `marker`, a Marker follows when all before it is final."""
        self._check()
        self._conversation.commit(marker)
        self._to_send.set()

    async def end(self) -> None:
        """No more audio: finals of all that was sent follow, then End. Does not wait for them."""
        self._check()
        self._conversation.end()
        self._to_send.set()

    async def receive(self) -> Event | None:
        """The next event; None after the last. Raises what ended the stream."""
        while not self._events:
            if self._closed or self._conversation.state is State.DONE:
                return None
            if self._conversation.state is State.FAILED:
                assert self._conversation.error is not None
                raise self._conversation.error
            await self._wait()
        return self._events.popleft()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.receive()) is not None:
            yield event

    async def aclose(self) -> None:
        """Leave at once; what was not final is lost. Harmless after the end."""
        self._closed = True
        if self._owner is not None:
            if self._conversation.state in (State.DONE, State.FAILED):
                await asyncio.wait([self._owner], timeout=GOODBYE)
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
        async with self._changed:
            self._changed.notify_all()

    def _check(self) -> None:
        if self._closed or self._owner is None:
            raise StreamClosed("the stream is not open; use it inside its with block")

    def _late(self) -> Unreachable:
        return Unreachable(f"{self._address} was not ready within {self._timeout:g} s")

    async def _until(self, true: Callable[[], bool]) -> None:
        """Wait until `true()`, or raise what ended the stream before."""
        while not true():
            if self._closed:
                raise StreamClosed("the stream was left")
            if self._conversation.state is State.FAILED:
                assert self._conversation.error is not None
                raise self._conversation.error
            if self._conversation.state is State.DONE:
                return
            await self._wait()

    async def _wait(self) -> None:
        async with self._changed:
            await self._changed.wait()

    async def _tell(self) -> None:
        """Hand new events over and wake who waits."""
        for event in self._conversation.events():
            self._withdraw(event)
            self._events.append(event)
        async with self._changed:
            self._changed.notify_all()

    def _withdraw(self, event: Event) -> None:
        """Take out what waits and what `event` makes pointless. Of what came since the last message of another kind
        there is one partial of an utterance and one ack at most, so this looks at few."""
        for at in range(len(self._events) - 1, -1, -1):
            match event, self._events[at]:
                case (Ack(), Ack()):
                    stale = True
                case (Partial(utterance=new), Partial(utterance=old)):
                    stale = new == old
                case (Ack() | Partial(), Ack() | Partial()):
                    stale = False
                case _:
                    return
            if stale:
                del self._events[at]
                return

    async def _own(self) -> None:
        """Connections one after another, until the stream is done or has failed."""
        try:
            await self._keep_connected()
        except OpenSpeechError as error:
            self._conversation.give_up(error)
        except Exception as error:  # the fault is here; who waits shall see it rather than wait
            lost = ConnectionLost(f"the client failed: {error!r}")
            lost.__cause__ = error
            self._conversation.give_up(lost)
        finally:
            self._closed = self._closed or self._conversation.state not in (
                State.DONE,
                State.FAILED,
            )
            await self._tell()

    async def _keep_connected(self) -> None:
        conversation, loop = self._conversation, asyncio.get_running_loop()
        delay, until, reached = 0.0, 0.0, -1
        while conversation.state not in (State.DONE, State.FAILED):
            wait: float | None = None
            try:
                await self._converse()
            except (Overloaded, ConnectionLost) as error:
                if conversation.session is None:
                    raise
                conversation.error = error
            if conversation.state in (State.DONE, State.FAILED):
                return
            assert conversation.error is not None
            if isinstance(conversation.error, Overloaded):
                wait = conversation.error.retry_after
            now = loop.time()
            if (
                conversation.progress > reached
            ):  # the last connection was of use: the patience begins anew
                reached = conversation.progress
                delay, until = 0.0, now + self._patience
            else:
                delay = min(LAST_DELAY, 2 * delay or FIRST_DELAY)
            pause = delay * random.uniform(0.75, 1.25) or random.uniform(0, SPREAD)
            pause = max((wait or 0.0) * random.uniform(1.0, 1.25), pause)
            if self._patience <= 0 or now + pause >= until:
                raise self._given_up(conversation.error)
            await asyncio.sleep(pause)

    def _given_up(self, error: OpenSpeechError) -> OpenSpeechError:
        """What ended the stream, and how long was tried."""
        if self._patience > 0:
            error.message += f"; given up after {self._patience:g} s"
            error.args = (error.message,)
        return error

    async def _converse(self) -> None:
        """One connection, from the handshake to its close."""
        socket = await self._dial()
        conversation = self._conversation
        conversation.receive_open()
        self._to_send.set()
        work = [
            asyncio.create_task(self._send(socket)),
            asyncio.create_task(self._watch(socket)),
        ]
        try:
            async with asyncio.timeout(self._timeout) as patience:
                async for message in socket:
                    self._heard = asyncio.get_running_loop().time()
                    conversation.receive_message(message)
                    if conversation.state is State.OPEN:
                        patience.reschedule(None)
                    self._to_send.set()
                    await self._tell()
                    if conversation.state is State.FAILED:
                        break
                    if (
                        conversation.state is State.DONE
                    ):  # the server closes; it need not be waited for long
                        patience.reschedule(asyncio.get_running_loop().time() + GOODBYE)
        except ConnectionClosed:
            pass
        except TimeoutError:
            if conversation.state is not State.DONE:
                raise self._late() from None
        finally:
            try:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
                await socket.close()
                with suppress(TimeoutError):
                    async with asyncio.timeout(GOODBYE):
                        await socket.wait_closed()
            finally:
                socket.transport.abort()  # where even the goodbye was cancelled
        conversation.receive_close(socket.close_code, socket.close_reason or "")
        await self._tell()

    async def _send(self, socket: ClientConnection) -> None:
        """Messages as the conversation has them; a keep-alive when it has none for long."""
        with suppress(ConnectionClosed):
            while True:
                self._to_send.clear()
                for message in self._conversation.messages():
                    await socket.send(message)
                async with self._changed:
                    self._changed.notify_all()
                try:
                    async with asyncio.timeout(QUIET):
                        await self._to_send.wait()
                except TimeoutError:
                    self._conversation.keep_alive()

    async def _watch(self, socket: ClientConnection) -> None:
        """Break a connection on which nothing comes any more, not even the answer to a ping."""
        # The library's own pings would take a server for dead that reads slowly: its pong waits behind audio.
        clock = asyncio.get_running_loop().time
        self._heard = clock()
        with suppress(ConnectionClosed):
            while True:
                asked = clock()
                if (rest := self._heard + HUSH - asked) > 0:
                    await asyncio.sleep(rest)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(HUSH):
                        await (await socket.ping())
                        self._heard = clock()
                if self._heard < asked:
                    socket.transport.abort()
                    return

    async def _dial(self) -> ClientConnection:
        """A connection. Raises Refused, Overloaded, ServerFailed or Unreachable."""
        headers = {}
        if self._key:
            if not (self._key.isascii() and self._key.isprintable()):
                raise Refused("the key has characters that no key has; is it the right one?")
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            return await connect(
                self._address,
                additional_headers=headers,
                user_agent_header="open-speech-client",
                compression=None,  # speech does not compress, and every message would cost time
                max_size=LONGEST,
                ping_interval=None,  # see _watch
                open_timeout=min(10.0, self._timeout),
                close_timeout=GOODBYE,
                ssl=(self._ssl or True) if self._address.startswith("wss:") else None,
                proxy=None if local(self._address) else True,
            )
        except InvalidStatus as error:
            answer = error.response
            raise refusal(
                answer.status_code, bytes(answer.body or b""), answer.headers.get("retry-after")
            ) from None
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, UnicodeError) as error:
            said = str(error) or type(error).__name__
            raise Unreachable(
                f"no open-speech server answers at {self._address} ({said})"
            ) from None


async def async_captions(
    audio: AsyncIterable[Audio] | Iterable[Audio],
    url: str = "http://localhost:8100",
    *,
    key: str | None = None,
    timeout: float = 120.0,
    reconnect: float = PATIENCE,
    ssl: SSLContext | None = None,
    **options: Unpack[Options],
) -> AsyncGenerator[Partial | Final, None]:
    """What is said in `audio`, while it is read: every Partial and Final until the audio ends."""
    async with async_connect(
        url, key=key, timeout=timeout, reconnect=reconnect, ssl=ssl, **options
    ) as stream:

        async def feed() -> None:
            try:
                if isinstance(audio, AsyncIterable):
                    async for piece in audio:
                        await stream.send(piece)
                else:
                    for piece in audio:
                        await stream.send(piece)
                await stream.end()
            except Exception:
                await stream.aclose()  # who listens shall not wait for audio that never comes
                raise

        feeding = asyncio.create_task(feed(), name="open-speech audio")
        try:
            async for event in stream:
                if isinstance(event, Partial | Final):
                    yield event
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
