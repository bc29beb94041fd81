"""The face for plain code: the asyncio face on a thread of its own, so that events arrive while audio is sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator, Iterable, Iterator
from contextlib import suppress
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from open_speech_client.aio import PATIENCE, AsyncStream, async_connect
from open_speech_client.errors import StreamClosed
from open_speech_client.events import Event, Final, Partial
from open_speech_client.options import Options
from open_speech_client.samples import Audio

T = TypeVar("T")


def connect(
    url: str = "http://localhost:8100",
    *,
    key: str | None = None,
    timeout: float = 120.0,
    reconnect: float = PATIENCE,
    ssl: SSLContext | None = None,
    **options: Unpack[Options],
) -> Stream:
    """A stream on the server at `url`, to be entered with `with`. See `async_connect`."""
    return Stream(
        async_connect(url, key=key, timeout=timeout, reconnect=reconnect, ssl=ssl, **options)
    )


class Stream:
    """Audio in, events out. One thread may send while another iterates."""

    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # nothing is put on a loop that is about to stop

    @property
    def received(self) -> int:
        """Bytes that the server holds."""
        return self._stream.received

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="open-speech stream", daemon=True
        )
        self._thread.start()
        try:
            self._call(self._stream.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, audio: Audio) -> None:
        """Append audio: bytes in the stream's encoding, or samples. Waits while the connection is slow or away."""
        self._call(self._stream.send(audio))

    def commit(self, marker: str | None = None) -> None:
        """End the utterance here. With a `marker`, a Marker follows when all before it is final."""
        self._call(self._stream.commit(marker))

    def end(self) -> None:
        """No more audio: finals of all that was sent follow, then End. Does not wait for them."""
        self._call(self._stream.end())

    def receive(self, timeout: float | None = None) -> Event | None:
        """The next event; None after the last. Raises what ended the stream, and TimeoutError."""
        if timeout is None:
            return self._call(self._stream.receive())
        return self._call(asyncio.wait_for(self._stream.receive(), timeout))

    def __iter__(self) -> Iterator[Event]:
        while (event := self.receive()) is not None:
            yield event

    def close(self) -> None:
        """Leave at once; what was not final is lost. Harmless after the end."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        assert self._thread is not None
        asyncio.run_coroutine_threadsafe(self._stream.aclose(), loop).result()
        asyncio.run_coroutine_threadsafe(_settle(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()

    def _call(self, deed: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop is None:
                deed.close()
                raise StreamClosed("the stream is not open; use it inside its with block")
            future = asyncio.run_coroutine_threadsafe(deed, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _settle() -> None:
    """Let what waits on the loop end before the loop does: other threads stand in `send` or `receive`."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, late = await asyncio.wait(others, timeout=1.0)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def captions(
    audio: Iterable[Audio],
    url: str = "http://localhost:8100",
    *,
    key: str | None = None,
    timeout: float = 120.0,
    reconnect: float = PATIENCE,
    ssl: SSLContext | None = None,
    **options: Unpack[Options],
) -> Generator[Partial | Final, None, None]:
    """What is said in `audio`, while it is read on another thread: every Partial and Final until the audio ends."""
    fault: list[Exception] = []
    with connect(url, key=key, timeout=timeout, reconnect=reconnect, ssl=ssl, **options) as stream:

        def feed() -> None:
            try:
                for piece in audio:
                    stream.send(piece)
                stream.end()
            except StreamClosed:
                pass  # the listener left
            except Exception as error:
                fault.append(error)
                with suppress(StreamClosed):
                    stream._call(stream._stream.aclose())  # who listens shall not wait for more

        feeding = threading.Thread(target=feed, name="open-speech audio", daemon=True)
        feeding.start()
        for event in stream:
            if isinstance(event, Partial | Final):
                yield event
    if fault:
        raise fault[0]
