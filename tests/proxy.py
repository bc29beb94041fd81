"""A wire that can be cut, slowed and stalled: a TCP proxy in a thread, for tests of bad connections and restarted servers."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Wire:
    """Connections to `url` go to `target`, until they are cut. While `up` is false none is taken."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: str) -> None:
        self.target = target
        self.url = ""
        self.up = True
        self.delay = 0.0
        """Seconds that each piece takes, either way."""
        self.piece = 65536
        """Bytes that are passed on at once at most."""
        self.stalled = False
        """While set nothing passes, either way, and the connections stay."""
        self.passed = 0
        """Bytes that clients sent, over all connections."""
        self.connections = 0
        self._loop = loop
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break all connections without a word."""

        def abort() -> None:
            for writer in self._writers:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def reset(self) -> None:
        """The same with RST, as from a machine that was restarted."""

        def abort() -> None:
            for writer in self._writers:
                found = writer.get_extra_info("socket")
                if found is not None:
                    now = struct.pack("ii", 1, 0)
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.up:
            writer.transport.abort()
            return
        there = urlsplit(self.target)
        try:
            inward, outward = await asyncio.open_connection(there.hostname, there.port)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self._writers |= {writer, outward}
        await asyncio.gather(self._carry(reader, outward, True), self._carry(inward, writer, False))
        self._writers -= {writer, outward}

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, counted: bool
    ) -> None:
        try:
            while data := await source.read(self.piece):
                if self.delay:
                    await asyncio.sleep(self.delay)
                while self.stalled:
                    await asyncio.sleep(0.01)
                if counted:
                    self.passed += len(data)
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()


@contextmanager
def wire(target: str) -> Iterator[Wire]:
    """A proxy before `target` on a free port, as long as the block runs."""
    ready = threading.Event()
    found: list[Wire] = []
    stop = asyncio.Event()

    async def main() -> None:
        made = Wire(asyncio.get_running_loop(), target)
        server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        found.append(made)
        ready.set()
        await stop.wait()
        server.close()
        for writer in made._writers:
            writer.transport.abort()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="wire")
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        found[0]._loop.call_soon_threadsafe(stop.set)
        thread.join(10)
