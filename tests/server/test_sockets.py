"""The shell of the native WebSocket, around an engine that says what the test tells it."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from socket import SO_RCVBUF, SOL_SOCKET, create_connection
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from server import sockets
from server.app import create_app
from server.protocols import native
from streaming.errors import BackendError, ModelUnavailable, Overloaded
from streaming.events import Failed, Final, Marker, Partial
from streaming.types import Checkpoint, Options
from tests.clock import Clock
from tests.containers import contained
from tests.fakes import pcm, tone
from tests.faults.process import until
from tests.serving import Chatter, Talker, context, running, with_engine

SECOND = pcm(tone(1.0))


@contextmanager
def serving(
    talker: Talker | None = None, ping: float = 20.0, **settings: object
) -> Iterator[tuple[Talker, str]]:
    talker = talker or Talker()
    with running(with_engine(talker, **settings), ping) as url:
        yield talker, url.replace("http", "ws") + "/v1/audio/transcriptions/stream"


def heard(socket: ClientConnection, until: str | None = None) -> list[dict[str, Any]]:
    """Messages up to the first of that type, or to the close."""
    found: list[dict[str, Any]] = []
    while True:
        try:
            found.append(json.loads(socket.recv(timeout=20)))
        except ConnectionClosed:
            assert until is None, f"{until} never came: {found}"
            return found
        if found[-1]["type"] == until:
            return found


def say(socket: ClientConnection, kind: str, **more: object) -> None:
    socket.send(json.dumps({"type": kind, **more}))


def without(messages: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] not in kinds]


def test_a_conversation_from_ready_to_end() -> None:
    with serving() as (talker, url), connect(url + "?language=en") as socket:
        socket.send(SECOND)
        say(socket, "commit", marker="one")
        heard(socket, "marker")
        socket.send(SECOND)
        say(socket, "end")
        last = heard(socket)
        assert without(last, "ack") == [
            {"type": "speech_started", "seq": last[-4]["seq"], "utterance": 1, "at": 1.0},
            {"type": "speech_stopped", "seq": last[-3]["seq"], "utterance": 1, "at": 2.0},
            {
                "type": "final",
                "seq": last[-2]["seq"],
                "utterance": 1,
                "text": "16000 samples",
                "start": 1.0,
                "end": 2.0,
                "received": 64000,
                "language": "en",
            },
            {"type": "end", "seq": last[-1]["seq"], "received": 64000, "reason": "client"},
        ]
        assert socket.close_code == 1000
        assert len(talker.streams[0].samples) == 32000
        assert talker.asked[0].language == "en"


@pytest.mark.parametrize(
    "message",
    [
        '{"type": "start", "sample_rate": 22050.5}',
        '{"type": "start", "sample_rate": ' + "9" * 400 + "}",
        '{"type": "start", "sample_rate": ' + "9" * 5000 + "}",
        '{"type": "start", "offset": NaN}',
        '{"type": "start", "offset": ' + "[" * 900 + "]" * 900 + "}",
        '{"type": ' + "[" * 30_000 + "]" * 30_000 + "}",
        '{"type": "start", "model": "\\ud800"}',
        '{"type": "start", "\\udfff": 1}',
        '{"type": "commit", "marker": "\\ud800"}',
        '{"type": "start", "prompt": false}',
        "[]",
        "1",
        "",
    ],
)
def test_odd_values_get_an_error_message_and_no_traceback(
    message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as (_, url), connect(url) as socket:
        socket.send(message)
        found = heard(socket)
        assert [each["type"] for each in found] == ["error"]
        assert found[0]["code"] in ("invalid_value", "invalid_json")
        assert socket.close_code == 1008
    assert not [each for each in caplog.records if each.exc_info]


def test_a_mistake_in_mid_stream_is_told_and_costs_nothing() -> None:
    with serving() as (_, url), connect(url) as socket:
        socket.send(SECOND)
        for slip in ('{"type": "start"}', "{", '{"type": "commit", "marker": 5}'):
            socket.send(slip)
            assert heard(socket, "error")
        say(socket, "end")
        assert heard(socket)[-2]["text"] == "16000 samples"


def test_audio_after_the_end_is_told_once() -> None:
    with serving() as (talker, url), connect(url) as socket:
        socket.send(SECOND)
        heard(socket, "ready")
        talker.streams[0].call(talker.streams[0].ending.clear)
        say(socket, "end")
        socket.send(SECOND)
        socket.send(SECOND)
        found = heard(socket, "error")
        assert found[-1]["code"] == "ended"
        talker.streams[0].call(talker.streams[0].ending.set)
        found = without(found + heard(socket), "ack")
        kinds = [each["type"] for each in found]
        assert (kinds.count("final"), kinds.count("error"), kinds[-1]) == (1, 1, "end")
        assert found[-1]["received"] == 32000
        assert socket.close_code == 1000


def test_a_message_too_big_ends_the_session_after_what_was_heard() -> None:
    with serving() as (_, url), connect(url, max_size=None) as socket:
        socket.send(SECOND)
        socket.send(bytes(4 * 2**20 + 1))
        found = without(heard(socket), "ack")
        assert [each["type"] for each in found] == [
            "ready",
            "error",
            "speech_started",
            "speech_stopped",
            "final",
            "end",
        ]
        assert found[1]["code"] == "too_big"
        assert found[-1]["reason"] == "error"
        assert found[-1]["received"] == 32000
        assert socket.close_code == 1009


def test_four_mebibytes_are_taken() -> None:
    with serving() as (_, url), connect(url) as socket:
        socket.send(bytes(4 * 2**20))
        say(socket, "end")
        assert heard(socket)[-1]["received"] == 4 * 2**20


def test_a_session_in_which_nothing_comes_is_ended_with_its_finals() -> None:
    with serving(stream_idle_seconds=0.2) as (_, url), connect(url) as socket:
        socket.send(SECOND)
        found = without(heard(socket), "ack")
        assert found[-1]["reason"] == "idle"
        assert found[-2]["text"] == "16000 samples"
        assert "keepalive" in next(each["message"] for each in found if each["type"] == "error")
        assert socket.close_code == 1008


@pytest.mark.parametrize(
    "said", [None, '{"type": "keepalive"}', '{"type": "commit"}', "{", b"\0\0"], ids=repr
)
def test_whatever_comes_begins_the_idle_time_anew(said: str | bytes | None) -> None:
    """Five times, a second before the minute is over, on a clock whose minutes take no time."""
    kind = "bytes" if isinstance(said, bytes) else "text"
    waiting = [{"type": "websocket.receive", kind: said}] * (0 if said is None else 5)
    first = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": '{"type": "start"}'},
    ]
    told: list[tuple[float, dict[str, Any]]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def receive() -> dict[str, Any]:
            if first:
                return first.pop(0)
            if not waiting:
                await asyncio.Event().wait()
            await asyncio.sleep(59.0)
            return waiting.pop()

        async def send(message: dict[str, Any]) -> None:
            if "text" in message:
                told.append((loop.time(), json.loads(message["text"])))

        app = create_app(context(Talker(), resume_seconds=0.0))
        scope = {
            "type": "websocket",
            "scheme": "ws",
            "http_version": "1.1",
            "path": "/v1/audio/transcriptions/stream",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "subprotocols": [],
        }
        await app(scope, receive, send)  # type: ignore[arg-type]

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(main())
    ended = [when for when, each in told if each.get("code") == "idle_timeout"]
    assert ended == [60.0 if said is None else pytest.approx(5 * 59.0 + 60.0)]
    assert told[-1][1]["reason"] == "idle"


def test_a_socket_on_which_nothing_ever_comes_is_closed() -> None:
    with serving(stream_idle_seconds=0.05) as (_, url), connect(url) as socket:
        assert [each["code"] for each in heard(socket)] == ["idle_timeout"]
        assert socket.close_code == 1008


def test_a_session_that_lasts_too_long_is_ended_with_its_finals() -> None:
    with serving(max_stream_seconds=0.2) as (_, url), connect(url) as socket:
        socket.send(SECOND)
        found = without(heard(socket), "ack")
        assert [each["code"] for each in found if each["type"] == "error"] == ["session_limit"]
        assert found[-2]["text"] == "16000 samples"
        assert found[-1]["reason"] == "limit"
        assert socket.close_code == 1008


def test_a_server_that_stops_lets_streams_end() -> None:
    with ExitStack() as stack:
        with serving() as (_, url):
            first, second = (stack.enter_context(connect(url)) for _ in range(2))
            first.send(SECOND)
            heard(first, "ack")  # the second has sent nothing at all
        found = heard(first)
        assert [each["type"] for each in found] == [
            "speech_started",
            "speech_stopped",
            "final",
            "end",
        ]
        assert found[-1]["reason"] == "restart"
        assert first.close_code == 1012
        assert [each["code"] for each in heard(second)] == ["stopping"]
        assert second.close_code == 1012


def test_a_server_that_stops_takes_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "GRACE", 20.0)
    with ExitStack() as stack:
        with serving() as (talker, url):
            socket = stack.enter_context(connect(url))
            socket.send(SECOND)
            heard(socket, "ack")
            stream = talker.streams[0]
            stream.call(stream.room.clear)  # the engine is behind, and the rest waits in the socket
            socket.send(SECOND)
            socket.send(SECOND)
            threading.Timer(0.3, lambda: stream.call(stream.room.set)).start()
        found = heard(socket)
        assert found[-2]["text"] == "48000 samples"
        assert found[-1]["received"] == 3 * len(SECOND)
        assert socket.close_code == 1012


@pytest.mark.parametrize(
    ("fault", "code", "close"),
    [
        (Overloaded("256 streams are open", retry_after=5), "overloaded", 1013),
        (ModelUnavailable("model toy is damaged"), "model_unavailable", 1011),
    ],
)
def test_a_stream_that_cannot_open_says_why(fault: Any, code: str, close: int) -> None:
    with serving(Talker(fault=fault)) as (_, url), connect(url) as socket:
        say(socket, "start")
        found = heard(socket)
        assert [each["code"] for each in found] == [code]
        assert found[0].get("retry_after") == getattr(fault, "retry_after", None)
        assert socket.close_code == close


def test_a_failed_utterance_is_told_and_the_stream_goes_on() -> None:
    with serving() as (talker, url), connect(url) as socket:
        say(socket, "start")
        heard(socket, "ready")
        talker.streams[0].say(Failed(0, BackendError("the recogniser failed on this audio")))
        assert heard(socket, "error")[-1]["utterance"] == 0
        socket.send(SECOND)
        say(socket, "end")
        assert heard(socket)[-1]["type"] == "end"


def test_an_engine_that_fails_closes_with_1011() -> None:
    with serving() as (talker, url), connect(url) as socket:
        say(socket, "start")
        heard(socket, "ready")
        talker.streams[0].say(BackendError("the recogniser is gone"))
        assert heard(socket)[-1]["code"] == "recognition_failed"
        assert socket.close_code == 1011
        assert talker.streams[0].closed.wait(10)


def test_a_key_comes_as_header_or_as_subprotocol() -> None:
    with serving(api_keys=("secret",)) as (_, url):
        for offer in (
            {"additional_headers": {"Authorization": "Bearer secret"}},
            {"subprotocols": ["open-speech", "open-speech-key.secret"]},
        ):
            with connect(url, **offer) as socket:  # type: ignore[arg-type]
                say(socket, "start")
                assert heard(socket, "ready")
        for key in ({}, {"Authorization": "Bearer wrong"}):
            with connect(url, additional_headers=key) as socket:
                found = heard(socket)
                assert [each["code"] for each in found] == ["invalid_api_key"]
                assert socket.close_code == 1008


def test_the_language_of_the_settings_holds_where_none_is_named() -> None:
    with serving(language="de") as (talker, url):
        for query in ("?model=toy", "?language=fr", "?language=auto"):
            with connect(url + query) as socket:
                heard(socket, "ready")
        assert [each.language for each in talker.asked] == ["de", "fr", None]


def test_compression_is_not_offered() -> None:
    with serving() as (_, url), connect(url, compression="deflate") as socket:
        assert socket.protocol.extensions == []


def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    with serving() as (talker, url):
        with connect(url) as socket:
            socket.send(SECOND)
            heard(socket, "ready")
        assert talker.streams[0].closed.wait(10)


class Loading(Talker):
    """Its model is there once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asking, self.given_up = threading.Event(), threading.Event()

    async def open_stream(
        self, options: Options, after: Checkpoint | None = None, *, admitted: bool = False
    ) -> Chatter:
        self.loop = asyncio.get_running_loop()
        self.hold = asyncio.Event()
        self.asking.set()
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        return await super().open_stream(options, after, admitted=admitted)


@pytest.mark.parametrize("said", [[], [SECOND, SECOND], ['{"type": "commit"}']])
def test_who_leaves_while_a_model_loads_waits_for_it_no_more(said: list[str | bytes]) -> None:
    with serving(Loading()) as (talker, url):
        assert isinstance(talker, Loading)
        with connect(url + "?language=en") as socket:
            assert talker.asking.wait(20)
            for each in said:
                socket.send(each)
        assert talker.given_up.wait(20)
        until(lambda: talker.backlog.seconds == 0.0)
        assert not talker.streams


@pytest.mark.parametrize("early", [1, sockets.EARLY_BYTES])
def test_what_is_said_while_a_model_loads_is_heard(
    early: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "EARLY_BYTES", early)
    with serving(Loading()) as (talker, url), connect(url + "?language=en") as socket:
        assert isinstance(talker, Loading)
        assert talker.asking.wait(20)
        socket.send(SECOND)
        until(lambda: talker.backlog.seconds > 0.0)
        socket.send(SECOND)
        say(socket, "commit", marker="here")
        socket.send(SECOND)
        say(socket, "end")
        talker.release()
        messages = without(heard(socket), "ready", "ack", "speech_started", "speech_stopped")
        assert [each["type"] for each in messages] == ["final", "marker", "final", "end"]
        assert messages[0]["text"] == "32000 samples"
        assert messages[3]["received"] == 3 * len(SECOND)
        until(lambda: talker.backlog.seconds == 0.0)


def test_acks_are_exact_and_come_after_the_last_audio_too() -> None:
    with serving() as (talker, url), connect(url) as socket:
        sent = 0
        for _ in range(10):
            socket.send(SECOND[:3201])
            sent += 3201
        numbers = []
        while not numbers or numbers[-1]["received"] < sent:
            numbers.append(heard(socket, "ack")[-1])
        received = [each["received"] for each in numbers]
        assert received == sorted(set(received))
        assert received[-1] == sent
        assert talker.streams[0].received == sent // 2


def test_numbers_have_no_gaps() -> None:
    with serving() as (talker, url), connect(url) as socket:
        say(socket, "start")
        found = heard(socket, "ready")
        talker.streams[0].say(
            *(Partial(0, n, " one" * n, " two") for n in range(50)),
            Final(0, " one" * 50, (), 0, 100, "en"),
        )
        say(socket, "end")
        found += heard(socket)
        assert [each["seq"] for each in found] == list(range(len(found)))
        assert found[-2]["type"] == "final"


@pytest.mark.parametrize(
    ("encoding", "messages", "expected"),
    [
        ("container", [b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n"], "expected is a stream of webm"),
        ("container", [contained(tone(1.0), "webm-opus")[:300]], "breaks off"),
        ("opus", [b"OggS" + bytes(100)], "encoding=container"),
        ("opus", [b"\xff\xff\xff"], "one packet a message"),
    ],
)
def test_audio_that_cannot_be_decoded_is_explained(
    encoding: str, messages: list[bytes], expected: str
) -> None:
    with serving() as (_, url), connect(url + "?encoding=" + encoding) as socket:
        with suppress(ConnectionClosed):  # the server may be done before we are
            for message in messages:
                socket.send(message)
            say(socket, "end")
        found = without(heard(socket), "ack", "ready")
        assert [each["type"] for each in found] == ["error", "end"]
        assert found[0]["code"] == "invalid_audio"
        assert expected in found[0]["message"]
        assert found[1]["reason"] == "error"
        assert socket.close_code == 1008


def test_what_was_heard_before_the_audio_broke_becomes_text() -> None:
    with serving() as (_, url), connect(url + "?encoding=pcm_f32le") as socket:
        socket.send(tone(1.0).astype("<f4").tobytes())
        socket.send(np.full(100, np.nan, "<f4").tobytes())
        found = without(heard(socket), "ack")
        assert found[-2]["text"] == "16000 samples"
        assert found[-1]["received"] == 64_000


def test_the_bytes_of_a_container_count_exactly_as_sent() -> None:
    with serving() as (talker, url), connect(url + "?encoding=container") as socket:
        data = contained(tone(3.0), "webm-opus")
        for at in range(0, len(data), 777):
            socket.send(data[at : at + 777])
        say(socket, "end")
        found = heard(socket)
        assert found[-1]["received"] == len(data)
        assert talker.streams[0].received == 48_000


def test_a_client_that_leaves_in_mid_container_leaves_no_thread() -> None:
    with serving() as (talker, url):
        with connect(url + "?encoding=container") as socket:
            socket.send(contained(tone(3.0), "webm-opus")[:2000])
            heard(socket, "ack")
        assert talker.streams[0].closed.wait(10)
    assert "container" not in [each.name for each in threading.enumerate()]


def test_a_sender_that_is_held_back_is_not_taken_for_dead() -> None:
    with serving(ping=0.1) as (talker, url), connect(url) as socket:
        socket.send(SECOND)
        heard(socket, "ack")
        stream = talker.streams[0]
        stream.call(stream.room.clear)  # the engine is behind
        for _ in range(3):
            socket.send(SECOND)
        with suppress(TimeoutError):  # a second of silence, ten times what a pong may take
            while True:
                socket.recv(timeout=1.0)
        stream.call(stream.room.set)
        say(socket, "end")
        assert heard(socket)[-1]["received"] == 4 * len(SECOND)
        assert socket.close_code == 1000


def test_a_peer_that_answers_no_ping_is_taken_for_dead() -> None:
    with serving(ping=0.1, resume_seconds=0.0) as (talker, url):
        address = urlsplit(url)
        with create_connection((address.hostname or "", address.port or 0), timeout=20) as deaf:
            deaf.sendall(
                f"GET {address.path}?language=en HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            while deaf.recv(4096):
                pass
        assert talker.streams[0].closed.wait(10)


def test_a_slow_reader_loses_stale_partials_and_no_final() -> None:
    with serving() as (talker, url), connect(url) as socket:
        say(socket, "start")
        found = heard(socket, "ready")
        text = " word" * 2000
        for utterance in range(5):
            talker.streams[0].say(
                *(Partial(utterance, revision, "", text) for revision in range(400)),
                Final(utterance, text, (), utterance, utterance + 1, "en"),
            )
        say(socket, "end")
        found += heard(socket)
        kinds = [each["type"] for each in found]
        assert [each["utterance"] for each in found if each["type"] == "final"] == list(range(5))
        assert kinds.count("partial") < 2000
        assert [each["seq"] for each in found] == list(range(len(found)))
        assert kinds[-1] == "end"


def test_a_reader_that_stops_for_a_while_goes_on_with_what_is_new() -> None:
    with serving() as (talker, url):
        address = urlsplit(url)
        with create_connection((address.hostname or "", address.port or 0), timeout=20) as slow:
            slow.setsockopt(SOL_SOCKET, SO_RCVBUF, 16 * 2**10)
            with connect(url, sock=slow, max_queue=1) as socket:
                say(socket, "start")
                found = heard(socket, "ready")
                stream, left = talker.streams[0], threading.Event()
                for revision in range(3000):
                    stream.say(Partial(0, revision, "", " word" * 400))
                    for _ in range(3):  # some turns of the loop, so that each might leave
                        left.clear()
                        stream.call(left.set)
                        assert left.wait(20)
                stream.say(Final(0, " word", (), 0, 1, "en"))
                say(socket, "end")
                found += heard(socket)
    partials = [each["revision"] for each in found if each["type"] == "partial"]
    assert len(partials) < 300, "of 3000: 6 MB"
    assert [each["type"] for each in found[-2:]] == ["final", "end"]


def test_who_reads_nothing_of_very_much_is_told_and_closed() -> None:
    with serving() as (talker, url), connect(url) as socket:
        say(socket, "start")
        heard(socket, "ready")
        finals = [
            Final(number, "x" * 20_000, (), number, number + 1, "en") for number in range(400)
        ]
        talker.streams[0].say(*finals)
        found = heard(socket)
        assert found[-1]["code"] == "slow_reader"
        assert socket.close_code == 1008
        told = [each["utterance"] for each in found[:-1]]
        assert told == list(range(len(told))), "what was taken leaves in order"


def test_commits_that_wait_are_bounded_and_their_markers_no_flood() -> None:
    """As while a decode hangs: nothing is final, and the client goes on committing."""
    with serving() as (talker, url), connect(url) as socket:
        say(socket, "start")
        found = heard(socket, "ready")
        stream, waiting = talker.streams[0], []

        async def commit(marker: str | None = None) -> None:
            waiting.append(Marker(marker, 0))

        stream.commit = commit  # type: ignore[method-assign]
        more = native.COMMITS + 3
        for number in range(more):
            say(socket, "commit", marker=f"{number:0256}")
        for _ in range(3):
            found += heard(socket, "error")
            assert found[-1]["code"] == "too_many_commits"
            assert "256 commits wait for their final" in found[-1]["message"]
        finals = [Final(at, " word", (), at, at + 1, "en") for at in range(native.COMMITS)]
        both = [each for pair in zip(finals, waiting, strict=True) for each in pair]
        stream.call(lambda: [stream._events.put_nowait(each) for each in both])
        for _ in range(native.COMMITS):
            found += heard(socket, "marker")
        say(socket, "commit", marker="again")
        say(socket, "commit")
        say(socket, "end")
        found += heard(socket)
        assert socket.close_code == 1000
        assert [each.id for each in waiting[-2:]] == ["again", None]
        told = [each["marker"] for each in found if each["type"] == "marker"]
        assert told == [f"{number:0256}" for number in range(native.COMMITS)]
        assert [each["seq"] for each in found] == list(range(len(found)))


SLIPS = st.sampled_from(
    ["{", "[]", '{"type": "start"}', '{"type": "commit", "marker": 1}', '{"type": "dance"}']
)
FRAME = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Talker, str]]:
    with serving() as found:
        yield found


@settings(max_examples=40, deadline=None)
@given(
    encoding=st.sampled_from(sorted(FRAME)),
    channels=st.integers(1, 3),
    said=st.lists(
        st.integers(0, 70_000) | SLIPS | st.just('{"type": "commit", "marker": "x"}'), max_size=12
    ),
)
def test_counts_are_exact_whatever_is_said(
    shared: tuple[Talker, str], encoding: str, channels: int, said: list[int | str]
) -> None:
    talker, url = shared
    sent = 0
    query = f"?encoding={encoding}&channels={channels}&sample_rate=16000"
    with connect(url + query) as socket:
        for each in said:
            socket.send(bytes(each) if isinstance(each, int) else each)
            sent += each if isinstance(each, int) else 0
        say(socket, "end")
        found = heard(socket)
        assert socket.close_code == 1000
    assert [each["seq"] for each in found] == list(range(len(found)))
    received = [each["received"] for each in found if "received" in each]
    assert received == sorted(received)
    assert received[-1] == sent
    assert talker.streams[-1].received == sent // (FRAME[encoding] * channels)
    slips = [each for each in said if isinstance(each, str) and "x" not in each]
    kinds = [each["type"] for each in found]
    assert kinds.count("error") == len(slips)
    assert kinds.count("marker") == said.count('{"type": "commit", "marker": "x"}')
    assert (kinds[0], kinds[-1]) == ("ready", "end")
