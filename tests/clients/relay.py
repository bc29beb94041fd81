"""A TCP relay between client and server that can be pointed elsewhere and cut."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ssl import SSLContext


class Relay:
    """Use `relayed`. Its methods may be called from any thread."""

    def __init__(self, target: str, tls: SSLContext | None) -> None:
        self._tls = tls
        self._target = _port(target)
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._closed = False
        self.connections = 0
        self.url = ""

    def point(self, target: str) -> None:
        """New connections go to the server at this URL."""
        self._target = _port(target)

    def cut(self) -> None:
        """Reset every connection."""

        def abort() -> None:
            for writer in self._open:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def refuse(self, closed: bool = True) -> None:
        """New connections are reset."""
        self._closed = closed

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._closed:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
        self._open -= {writer, there[1]}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()
            await writer.wait_closed()

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0, ssl=self._tls)
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()
        for writer in set(self._open):
            writer.transport.abort()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


@contextmanager
def relayed(target: str, tls: SSLContext | None = None) -> Iterator[Relay]:
    """A relay to the server at URL `target`, on a thread of its own."""
    relay = Relay(target, tls)
    ready, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(
        target=relay._loop.run_until_complete, args=[relay._serve(ready, stop)], name="relay"
    )
    thread.start()
    assert ready.wait(10)
    try:
        yield relay
    finally:
        relay._loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        relay._loop.close()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
