"""The Python client's core against a model of a server that keeps its word, over connections that break anywhere."""

import json
import struct
from collections import deque
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from open_speech_client import (
    Ack,
    ConnectionLost,
    End,
    Error,
    Event,
    Final,
    Marker,
    Options,
    Overloaded,
    Partial,
    ProtocolError,
    Ready,
    Reconnecting,
    Refused,
    ServerFailed,
    SpeechStarted,
    StreamClosed,
)
from open_speech_client.address import address
from open_speech_client.protocol import KEPT, Conversation, State

RATE = 100
"""Samples a second here: limits that are seconds are then reached with little audio."""


def spoken(index: int) -> bool:
    """Somebody speaks in this sample. Sentences of 80 samples, pauses of 40, and one silence of 10 s."""
    return (index // 40) % 3 != 0 and not 1000 <= index < 2000


class Session:
    """Transcribes samples that carry their own index into those indices."""

    def __init__(self, name: str, offset: float, seconds: float) -> None:
        self.name, self.offset, self.seconds = name, offset, seconds
        self.journal: list[dict[str, Any]] = []
        self.audio = b""
        self.heard: list[int] = []
        self.utterance = 0
        self.start: int | None = None
        self.ended = False

    def ready(self) -> dict[str, Any]:
        return {
            "type": "ready",
            "seq": 0,
            "session": self.name,
            "model": "indices",
            "sample_rate": RATE,
            "received": len(self.audio),
            "resumable_seconds": self.seconds,
        }

    def put(self, kind: str, **fields: Any) -> None:
        self.journal.append({"type": kind, "seq": len(self.journal) + 1, **fields})

    def at(self, sample: int) -> float:
        return round(sample / RATE + self.offset, 3)

    def receive(self, data: bytes) -> None:
        self.audio += data
        whole = len(self.audio) // 2
        for (index,) in struct.iter_unpack("<h", self.audio[2 * len(self.heard) : 2 * whole]):
            assert not self.heard or index == self.heard[-1] + 1, "no sample is lost or doubled"
            if spoken(index) and self.start is None:
                self.start = len(self.heard)
                self.put("speech_started", utterance=self.utterance, at=self.at(self.start))
            elif not spoken(index):
                self.stop()
            self.heard.append(index)
        kind = "ack" if self.start is None else "partial"
        more = {"utterance": self.utterance, "revision": 1, "committed": "", "tentative": "…"}
        fields = more if kind == "partial" else {}
        self.put(kind, received=len(self.audio), lag=0.0, **fields)

    def stop(self, **more: Any) -> None:
        if self.start is None:
            return
        self.put("speech_stopped", utterance=self.utterance, at=self.at(len(self.heard)))
        text = " ".join(map(str, self.heard[self.start :]))
        start, end = self.at(self.start), self.at(len(self.heard))
        self.put(
            "final",
            utterance=self.utterance,
            text=text,
            start=start,
            end=end,
            received=len(self.audio),
            **more,
        )
        self.utterance += 1
        self.start = None

    def commit(self, marker: str | None) -> None:
        self.stop()
        self.put("marker", marker=marker, at=self.at(len(self.heard)))

    def end(self, reason: str) -> None:
        self.stop(**({} if reason == "client" else {"cut": True}))
        self.ended = True
        self.put("end", received=len(self.audio), reason=reason)


class Server:
    """Sessions, and the one connection to the client under test."""

    def __init__(self, resumable: float) -> None:
        self.resumable = resumable
        self.sessions: dict[str, Session] = {}
        self.session: Session | None = None
        self.told = 0
        self.out: deque[dict[str, Any] | int] = deque()
        self.count = 0

    def receive(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            assert self.session is not None
            self.session.receive(message)
            return
        given = json.loads(message)
        match given["type"]:
            case "start":
                self.count += 1
                name = f"s_{self.count}"
                made = Session(name, given.get("offset", 0.0), self.resumable)
                self.session = self.sessions[name] = made
                self.out.append(made.ready())
                self.told = 0
            case "resume":
                found = self.sessions.get(given["session"])
                if found is None:
                    fault = {
                        "type": "error",
                        "seq": 0,
                        "code": "unknown_session",
                        "message": "gone",
                    }
                    self.out.extend([fault, 1008])
                    return
                self.session = found
                self.out.append(found.ready())
                self.told = given["last_event"]
            case "commit" | "end" if self.session is not None and self.session.ended:
                pass  # the client cannot know that it arrived
            case "commit":
                assert self.session is not None
                self.session.commit(given.get("marker"))
            case "end":
                assert self.session is not None
                self.session.end("client")
            case "keepalive":
                pass
            case other:
                raise AssertionError(other)

    def say(self) -> None:
        """Move what the session has to say onto the wire."""
        if self.session is not None:
            self.out.extend(self.session.journal[self.told :])
            self.told = len(self.session.journal)

    def restart(self) -> None:
        self.sessions.clear()
        self.session = None


class World:
    """A client, a server, and what is on the wire between them."""

    def __init__(self, resumable: float = 0.0, **options: Any) -> None:
        self.client = Conversation({"sample_rate": RATE, **options})  # type: ignore[typeddict-item]
        self.server = Server(resumable)
        self.to_server: deque[str | bytes] = deque()
        self.events: list[Event] = []
        self.sent = 0

    def connect(self) -> None:
        if self.client.state is State.APART:
            self.to_server.clear()
            self.server.out.clear()
            self.server.session = None
            self.client.receive_open()

    def speak(self, count: int, extra: int = 0) -> None:
        """Send samples; with `extra` the cut lies within one."""
        data = struct.pack(f"<{count}h", *range(self.sent, self.sent + count))
        self.sent += count
        if extra and len(data) > 1:
            self.client.send(data[:1])
            data = data[1:]
        self.client.send(data)

    def move(self, up: int = 10_000, down: int = 10_000) -> None:
        """Carry some messages each way."""
        self.to_server.extend(self.client.messages())
        for _ in range(min(up, len(self.to_server))):
            self.server.receive(self.to_server.popleft())
        self.server.say()
        for _ in range(min(down, len(self.server.out))):
            message = self.server.out.popleft()
            if isinstance(message, int):
                self.client.receive_close(message)
            else:
                self.client.receive_message(json.dumps(message))
        self.events += self.client.events()

    def lose(self, code: int | None) -> None:
        """The connection breaks; what is on the wire is lost."""
        if self.client.state is State.DONE:
            return
        if code == 1012:
            self.server.restart()
        self.client.receive_close(code)
        self.to_server.clear()
        self.server.out.clear()

    def drain(self) -> None:
        """The server finishes what it has and goes."""
        if self.client.state is State.OPEN and self.server.session is not None:
            self.move(up=0)
            if self.client.state is State.OPEN:
                self.server.session.end("restart")
                self.move(up=0)
        self.lose(1012)

    def finish(self) -> None:
        self.client.end()
        for _ in range(20):
            self.connect()
            self.move()
            if self.client.state in (State.DONE, State.FAILED):
                return
        raise AssertionError(f"no end: {self.client.state}")

    @property
    def finals(self) -> list[Final]:
        return [event for event in self.events if isinstance(event, Final)]


Deed = tuple[str, int]
DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("speak"), st.integers(1, 400)),
        st.tuples(st.just("commit"), st.integers(0, 1)),
        st.tuples(st.just("move"), st.integers(0, 5)),
        st.tuples(st.just("up"), st.integers(0, 5)),
        st.tuples(st.just("lose"), st.sampled_from([0, 1006, 1012])),
        st.tuples(st.just("drain"), st.just(0)),
        st.tuples(st.just("end"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@example([("speak", 1), ("speak", 40), ("speak", 1), ("move", 4), ("drain", 0)], 0.0, 0.0)
@given(DEEDS, st.sampled_from([0.0, 30.0]), st.sampled_from([0.0, 7.25]))
def test_every_sample_is_in_one_final_however_connections_break(
    deeds: list[Deed], resumable: float, offset: float
) -> None:
    world = World(resumable, **({"offset": offset} if offset else {}))
    world.connect()
    world.move()
    markers = 0
    commits: list[int] = []
    ended = False
    for deed, number in deeds:
        world.connect()
        if ended and deed in ("speak", "commit"):
            continue
        match deed:
            case "speak":
                world.speak(number, number % 2)
            case "commit":
                world.client.commit(str(markers) if number else None)
                markers += number
                commits.append(world.sent)
            case "move":
                world.move(number, number * 2)
            case "up":
                world.move(number, 0)
            case "lose":
                world.lose(number or None)
            case "drain":
                world.drain()
            case "end":
                world.client.end()
                ended = True
    world.finish()
    assert world.client.state is State.DONE, world.client.error
    said = [[int(index) for index in final.text.split()] for final in world.finals]
    assert list(chain(*said)) == [index for index in range(world.sent) if spoken(index)]
    # No break of a connection or a server ends a sentence: only pauses and commits do.
    for before, after in pairwise(said):
        assert after[0] != before[-1] + 1 or after[0] in commits
    for final in world.finals:
        first = int(final.text.split()[0])
        assert final.start == pytest.approx(first / RATE + offset, abs=0.002)
    assert [final.utterance for final in world.finals] == list(range(len(world.finals)))
    answered = [
        event.marker for event in world.events if isinstance(event, Marker) and event.marker
    ]
    assert answered == [str(each) for each in range(markers)]
    ends = [event for event in world.events if isinstance(event, End)]
    assert [end.received for end in ends] == [2 * world.sent]
    assert world.client.waiting == 0


def test_a_commit_that_may_not_have_arrived_is_answered_once() -> None:
    world = World(30.0)
    world.connect()
    world.move()
    world.speak(60)
    world.client.commit("x")
    world.move(up=2, down=0)
    world.lose(None)
    world.finish()
    assert sum(isinstance(event, Marker) for event in world.events) == 1
    assert len(world.finals) == 1


def test_a_new_session_begins_on_a_whole_sample() -> None:
    client = opened()
    for piece in (bytes(16_001), *[bytes(16_000)] * 20):
        client.send(piece)
    client.messages()
    client.receive_message('{"type": "ack", "seq": 1, "received": 336001, "lag": 0}')
    assert client._kept[0].start % 2 == 1
    client.receive_close(1012)
    client.receive_open()
    offset = json.loads(client.messages()[0])["offset"]
    session = Session("s_2", 0.0, 0.0)
    client.receive_message(json.dumps({**session.ready(), "sample_rate": 16000}))
    rest = sum(len(message) for message in client.messages())
    assert round(offset * 32000) + rest == 336_001
    assert round(offset * 32000) % 2 == 0


def test_memory_stays_bounded_in_silence_and_when_finals_do_not_come() -> None:
    world = World()
    world.connect()
    most = 0
    for _ in range(300):
        world.client.send(b"\0\0" * RATE)  # index 0: silence
        for message in world.client.messages():
            if isinstance(message, bytes):
                world.server.count += len(message)
            else:
                world.server.receive(message)
                world.server.count = 0
        world.server.say()
        while world.server.out:
            world.client.receive_message(json.dumps(world.server.out.popleft()))
        ack = {"type": "ack", "seq": world.server.count, "received": world.server.count, "lag": 0.1}
        world.client.receive_message(json.dumps(ack))
        most = max(most, kept(world.client))
    assert most <= 8 * 2 * RATE
    started = {"type": "speech_started", "seq": 10**6, "utterance": 0, "at": 300.0}
    world.client.receive_message(json.dumps(started))
    for second in range(1, 400):
        world.client.send(b"\0\0" * RATE)
        world.client.messages()
        received = (300 + second) * 2 * RATE
        ack = {"type": "ack", "seq": 10**6 + second, "received": received, "lag": 99.0}
        world.client.receive_message(json.dumps(ack))
        most = max(most, kept(world.client))
    assert (KEPT - 1) * 2 * RATE <= most <= (KEPT + 1) * 2 * RATE


def kept(client: Conversation) -> int:
    return sum(piece.end - piece.start for piece in client._kept)


def test_long_audio_leaves_in_pieces_and_opus_packets_whole() -> None:
    for options, sizes in (
        ({}, [65536, 65536, 65536, 3392]),
        ({"encoding": "opus"}, [200_000]),
    ):
        client = opened(options)  # type: ignore[arg-type]
        client.send(bytes(200_000))
        assert [len(each) for each in client.messages()] == sizes


def opened(options: Options | None = None, **ready: Any) -> Conversation:
    client = Conversation(options)
    client.receive_open()
    client.messages()
    session = Session("s_1", 0.0, 0.0)
    client.receive_message(json.dumps({**session.ready(), "sample_rate": 16000, **ready}))
    assert isinstance(client.events()[0], Ready)
    return client


def test_options_go_into_the_first_message_and_audio_waits_for_ready() -> None:
    client = Conversation({"language": None, "hotwords": ("Müller", "Ω"), "words": True})
    client.send(b"1234")
    client.commit("é")
    assert client.messages() == []
    client.receive_open()
    opening = client.messages()
    assert [json.loads(each) for each in opening] == [
        {"type": "start", "hotwords": ["Müller", "Ω"], "words": True}
    ]
    client.receive_message(json.dumps(Session("s", 0, 0).ready()))
    assert client.messages() == [b"1234", '{"type": "commit", "marker": "é"}']
    client.end()
    client.end()
    assert client.messages() == ['{"type": "end"}']
    assert client.messages() == []
    for deed in (lambda: client.send(b"12"), client.commit):
        with pytest.raises(StreamClosed, match="after end"):
            deed()


@pytest.mark.parametrize(
    ("code", "fault", "expected"),
    [
        (1008, {"code": "invalid_value", "message": "no", "param": "model"}, Refused),
        (1009, {"code": "too_big", "message": "no"}, Refused),
        (1011, {"code": "internal_error", "message": "no"}, ServerFailed),
        (1013, {"code": "overloaded", "message": "no", "retry_after": 5}, Overloaded),
        (1012, {"code": "stopping", "message": "no", "retry_after": 5}, Overloaded),
        (None, None, ConnectionLost),
        (1002, None, Refused),
    ],
)
def test_a_close_at_the_opening_is_the_fault_it_means(
    code: int | None, fault: dict[str, Any] | None, expected: type[Exception]
) -> None:
    client = Conversation()
    client.receive_open()
    if fault is not None:
        client.receive_message(json.dumps({"type": "error", "seq": 0, **fault}))
    client.receive_close(code)
    assert client.state is State.FAILED
    assert type(client.error) is expected
    if isinstance(client.error, Refused) and fault is not None:
        assert client.error.code == fault["code"]
        assert client.error.param == fault.get("param")
    if isinstance(client.error, Overloaded):
        assert client.error.retry_after == 5
    with pytest.raises(expected):
        client.send(b"12")


def test_a_running_stream_survives_restarts_but_no_refusal() -> None:
    for code, state in (
        (1012, State.APART),
        (1001, State.APART),
        (None, State.APART),
        (1013, State.APART),
        (1008, State.FAILED),
        (1011, State.FAILED),
    ):
        client = opened()
        client.receive_close(code)
        assert client.state is state, code


def test_compressed_audio_cannot_go_on_elsewhere() -> None:
    client = opened({"encoding": "container"})
    client.receive_close(1012)
    assert client.state is State.FAILED
    assert isinstance(client.error, ConnectionLost)
    client = opened({"encoding": "container"}, resumable_seconds=30)
    client.send(b"abcdef")
    client.messages()
    client.receive_close(1006)
    client.receive_open()
    assert json.loads(client.messages()[0]) == {
        "type": "resume",
        "session": "s_1",
        "last_event": 0,
    }
    ready = {**Session("s_1", 0, 30).ready(), "received": 4}
    client.receive_message(json.dumps(ready))
    assert client.messages() == [b"ef"]


def test_an_utterance_without_its_final_begins_again_under_its_number() -> None:
    world = World()
    world.connect()
    world.move()
    world.speak(60)  # sample 40 on is speech
    world.move()
    world.lose(1012)
    world.connect()
    world.speak(90)
    world.move()
    world.move()
    started = [event.utterance for event in world.events if isinstance(event, SpeechStarted)]
    assert started[:2] == [0, 0]
    assert sum(isinstance(event, Ready) for event in world.events) == 2
    assert world.finals[0].utterance == 0


def test_news_from_newer_servers_is_ignored_and_nonsense_fails() -> None:
    client = opened()
    client.receive_message('{"type": "weather", "seq": 1, "sky": "blue"}')
    client.receive_message('{"type": "ack", "seq": 2, "received": 0, "lag": 0, "new": []}')
    assert [type(event) for event in client.events()] == [Ack]
    for nonsense in (
        "",
        "[]",
        "null",
        "{",
        '{"type": "final", "seq": 3}',
        '{"type": "ack", "seq": "x", "received": null}',
        '{"type": "ack", "seq": 3, "received": "many"}',
        '{"type": ["ack"]}',
        "[" * 100_000,
    ):
        client = opened()
        client.receive_message(nonsense)
        assert client.state is State.FAILED, nonsense[:40]
        assert isinstance(client.error, ProtocolError)


def test_errors_in_the_middle_are_events() -> None:
    client = opened()
    fault = {"type": "error", "seq": 1, "code": "invalid_value", "message": "marker must be text"}
    client.receive_message(json.dumps(fault))
    assert client.events() == [Error(1, "invalid_value", "marker must be text")]
    assert client.state is State.OPEN


def test_partials_are_values_with_their_text() -> None:
    client = opened()
    message = {
        "type": "partial",
        "seq": 1,
        "utterance": 0,
        "revision": 1,
        "committed": "The small",
        "tentative": " dog",
        "received": 0,
        "lag": 0.2,
        "words": [{"text": "The", "start": 0.4, "end": 0.5, "probability": 0.9}],
    }
    client.receive_message(json.dumps(message))
    (partial,) = client.events()
    assert isinstance(partial, Partial)
    assert partial.text == "The small dog"
    assert partial.words[0].text == "The"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("localhost", "ws://localhost:8100/v1/audio/transcriptions/stream"),
        ("box:9000", "ws://box:9000/v1/audio/transcriptions/stream"),
        ("http://box", "ws://box/v1/audio/transcriptions/stream"),
        ("https://box/", "wss://box/v1/audio/transcriptions/stream"),
        ("https://box/stt/v1", "wss://box/stt/v1/audio/transcriptions/stream"),
        (
            "ws://[::1]:8100/v1/audio/transcriptions/stream",
            "ws://[::1]:8100/v1/audio/transcriptions/stream",
        ),
    ],
)
def test_addresses_as_people_type_them(typed: str, expected: str) -> None:
    assert address(typed) == expected


@pytest.mark.parametrize("typed", ["", "ftp://box", "http://", "box:port", "http://box:99999"])
def test_what_is_no_address_is_told(typed: str) -> None:
    with pytest.raises(Refused, match="no address of a server"):
        address(typed)


def final(**more: Any) -> str:
    return json.dumps(
        {"type": "final", "seq": 1, "utterance": 0, "text": "hallo", "start": 0.0, "end": 1.0}
        | {"received": 64_000, "language": "de", **more}
    )


def test_a_new_session_has_the_language_that_the_stream_settled_on() -> None:
    for asked, settled, expected in (
        (None, "de", "de"),
        (None, None, None),
        ("fr", None, "fr"),
    ):
        client = opened({"language": asked})
        client.send(bytes(64_000))
        client.messages()
        client.receive_message(final(stream_language=settled))
        client.receive_close(1012)
        client.receive_open()
        opening = json.loads(client.messages()[0])
        assert opening.get("language") == expected
        assert opening["offset"] == 1.0


def test_a_cut_final_is_left_out_where_the_utterance_is_heard_again() -> None:
    client = opened()
    client.send(bytes(96_000))
    client.messages()
    client.receive_message('{"type": "speech_started", "seq": 1, "utterance": 0, "at": 0.5}')
    client.receive_message(final(seq=2, cut=True))
    client.receive_message('{"type": "end", "seq": 3, "received": 64000, "reason": "restart"}')
    client.receive_close(1012)
    assert [type(event) for event in client.events()] == [SpeechStarted, Reconnecting]
    client.receive_open()
    assert json.loads(client.messages()[0])["offset"] == 0.0
    client.receive_message(json.dumps({**Session("s_2", 0, 0).ready(), "sample_rate": 16000}))
    assert sum(len(message) for message in client.messages()) == 96_000


def test_a_cut_final_is_kept_where_nobody_will_hear_it_again() -> None:
    for options in ({}, {"encoding": "container"}):
        client = opened(options)  # type: ignore[arg-type]
        client.send(bytes(64_000))
        client.messages()
        client.receive_message(final(cut=True))
        client.receive_message('{"type": "end", "seq": 3, "received": 64000, "reason": "restart"}')
        client.receive_close(1012)
        client.give_up(ConnectionLost("nobody there"))
        assert [event.text for event in client.events() if isinstance(event, Final)] == ["hallo"]
    client = opened()
    client.send(bytes(64_000))
    client.end()
    client.messages()
    client.receive_message(final(cut=True))
    client.receive_message('{"type": "end", "seq": 2, "received": 64000, "reason": "restart"}')
    assert [type(event) for event in client.events()] == [Final, End]
    assert client.state is State.DONE
