"""Deadlines of the listener, over plain sockets."""

import asyncio
import itertools
import json
import logging
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import httpx2
import pytest
import websockets

from server import connections, listener
from streaming.types import RATE, Checkpoint, Options, Recording, Segment, Transcribed
from tests.fakes import tone, wav
from tests.serving import Talker, running, with_engine


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(connections, "HEAD", 1.0)
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


class Endless(Talker):
    """Speaks until nobody listens."""

    async def transcribe(
        self, recording: Recording, options: Options, after: Checkpoint | None = None
    ) -> AsyncGenerator[Transcribed, None]:
        try:
            for at in itertools.count():
                yield Segment(at * RATE, (at + 1) * RATE, " word" * 200, language="en")
                await asyncio.sleep(0)
        finally:
            self.stopped.set()


def upload(stream: str) -> bytes:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\n'
        + stream.encode()
        + b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        + wav(tone(1.0))
        + b"\r\n--x--\r\n"
    )
    return (
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: here\r\n"
        b"content-type: multipart/form-data; boundary=x\r\ncontent-length: %d\r\n\r\n" % len(body)
    ) + body


def test_a_streamed_answer_is_work_until_its_last_byte() -> None:
    talker = Talker([Segment(0, RATE, " Hello.", language="en")])
    talker.hold = asyncio.Event()
    made = with_engine(talker)()
    here = made[1]
    with (
        running(lambda: made) as url,
        httpx2.Client(base_url=url, timeout=20) as client,
        client.stream(
            "POST",
            "/v1/audio/transcriptions",
            files={"file": ("a.wav", wav(tone(1.0)))},
            data={"stream": "true"},
        ) as answer,
    ):
        lines = answer.iter_lines()
        assert "Hello." in next(lines)
        assert here.working == 1
        talker.release()
        assert "transcript.text.done" in "".join(lines)
    assert here.working == 0


def test_a_peer_that_reads_nothing_does_not_hold_up_a_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "STALL", 0.5)
    talker = Endless()
    made = with_engine(talker, drain_seconds=100.0)
    with running(made) as url:
        deaf = dial(url)
        deaf.sendall(upload("true"))
        assert deaf.recv(12) == b"HTTP/1.1 200"
    # The server has been told to stop here, and waited for as long as it may take.
    with closing(deaf):
        assert talker.stopped.is_set()


def test_a_closing_connection_does_not_wait_for_a_peer_that_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "STALL", 0.5)
    cut = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "reads nothing" in record.getMessage():
                cut.set()

    watch = Watch()
    logger = logging.getLogger("server.listener")
    logger.addHandler(watch)
    logger.setLevel(logging.INFO)
    talker = Talker([Segment(at * RATE, (at + 1) * RATE, " w" * 20_000) for at in range(500)])
    try:
        with running(with_engine(talker)) as url, closing(dial(url)) as deaf:
            deaf.sendall(upload("false").replace(b"host: here", b"host: here\r\nconnection: close"))
            assert cut.wait(20)
            assert httpx2.get(url + "/livez").status_code == 200
    finally:
        logger.removeHandler(watch)
        logger.setLevel(logging.NOTSET)


CHUNKED = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    b"content-type: multipart/form-data; boundary=x\r\n\r\n"
)


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"POST /asr HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        CHUNKED + b"5\r\nhello\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_the_envelope(
    url: str, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(dial(url)) as broken:
        broken.sendall(said)
        answer = until_closed(broken)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-request-id: req_" in head.lower()
    assert json.loads(body)["error"]["code"] == "bad_request"
    assert httpx2.get(url + "/livez").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
