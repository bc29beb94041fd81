"""Deadlines of the listener, over plain sockets."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
import websockets

from server import listener
from tests.serving import Talker, running, with_engine


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(listener, "HEAD", 1.0)
    with running(with_engine(Talker())) as url:
        yield url


def dial(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def until_closed(connection: socket.socket) -> bytes:
    """What comes until the server closes; a server that never does is a timeout."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def test_a_head_that_never_ends_is_cut(url: str) -> None:
    with closing(dial(url)) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nhost: here\r\n")
        assert until_closed(slow) == b""


def test_a_head_that_never_ends_is_cut_on_a_kept_alive_connection(url: str) -> None:
    with closing(dial(url)) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nhost: here\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /livez HTTP/1.1\r\nhost")
        until_closed(slow)


def test_a_websocket_outlives_the_deadline_of_its_head(url: str) -> None:
    async def run() -> None:
        address = url.replace("http", "ws") + "/v1/audio/transcriptions/stream"
        async with websockets.connect(address) as client:
            # This connection is younger than the socket: when it is cut, the socket's own deadline has passed too.
            with closing(dial(url)) as slow:
                slow.sendall(b"GET /livez HTTP/1.1\r\n")
                await asyncio.to_thread(until_closed, slow)
            await (await client.ping())

    asyncio.run(asyncio.wait_for(run(), 20))
