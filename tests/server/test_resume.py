"""Sessions that outlive their connections, around an engine that says what the test tells it."""

import asyncio
import gc
import json
import logging
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from server import sessions, sockets
from server.protocols import native
from server.sessions import Session, Sessions
from streaming.audio import live
from streaming.events import Final, Partial
from tests.containers import contained, packets
from tests.fakes import pcm, tone
from tests.proxy import wire
from tests.serving import Chatter, Talker, context, running, with_engine, with_toy

SECOND = pcm(tone(1.0))


@contextmanager
def serving(
    talker: Talker | None = None, ping: float = 20.0, **settings: object
) -> Iterator[tuple[Talker, str]]:
    talker = talker or Talker()
    with running(with_engine(talker, **settings), ping) as url:
        yield talker, url.replace("http", "ws") + "/v1/audio/transcriptions/stream"


def heard(link: ClientConnection, until: str | None = None) -> list[dict[str, Any]]:
    """Messages up to the first of that type, or to the close."""
    found: list[dict[str, Any]] = []
    while True:
        try:
            found.append(json.loads(link.recv(timeout=20)))
        except ConnectionClosed:
            assert until is None, f"{until} never came: {found}"
            return found
        if found[-1]["type"] == until:
            return found


def say(link: ClientConnection, kind: str, **more: object) -> None:
    link.send(json.dumps({"type": kind, **more}))


def reset(link: ClientConnection) -> None:
    """Break the connection as a dying machine would: RST, no goodbye."""
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.socket.shutdown(socket.SHUT_RD)  # the reader's thread lets go of it
    link.socket.close()


def vanish(link: ClientConnection) -> None:
    """Close the connection without the protocol's goodbye: FIN."""
    link.socket.shutdown(socket.SHUT_RDWR)


def lost(caplog: pytest.LogCaptureFixture, times: int = 1) -> None:
    """Wait until the server noticed that so many connections broke."""
    awaited(lambda: noted(caplog, "lost its connection") >= times)


def noted(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in list(caplog.records))


def awaited(true: Callable[[], bool]) -> None:
    turn = threading.Event()
    for _ in range(2000):
        if true():
            return
        turn.wait(0.01)
    raise AssertionError("it never came true")


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.sessions")


def begun(link: ClientConnection, **options: object) -> str:
    say(link, "start", **options)
    return str(heard(link, "ready")[0]["session"])


def resumed(link: ClientConnection, session: str, last: int) -> dict[str, Any]:
    say(link, "resume", session=session, last_event=last)
    ready: dict[str, Any] = json.loads(link.recv(timeout=20))
    return ready


@pytest.mark.parametrize("broken", [reset, vanish])
def test_what_was_missed_comes_once_with_its_numbers(
    broken: Callable[[ClientConnection], None], caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as (talker, url):
        link = connect(url)
        session = begun(link)
        link.send(SECOND)
        say(link, "commit", marker="one")
        before = heard(link, "marker")
        broken(link)
        lost(caplog)
        stream = talker.streams[0]
        stream.say(Partial(1, 1, " old", ""), Partial(1, 2, " new", ""))
        with connect(url) as again:
            ready = resumed(again, session, before[-1]["seq"])
            assert ready["type"] == "ready"
            assert (ready["seq"], ready["session"], ready["received"]) == (0, session, len(SECOND))
            again.send(SECOND)
            say(again, "end")
            after = heard(again)
            assert again.close_code == 1000
        assert [each["seq"] for each in before + after] == list(
            range(1, len(before) + len(after) + 1)
        )
        kinds = [each["type"] for each in after if each["type"] not in ("ack", "partial")]
        assert kinds == ["speech_started", "speech_stopped", "final", "end"]
        assert after[-1]["received"] == 2 * len(SECOND)
        assert stream.received == 32_000


def test_what_did_not_arrive_comes_again(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as (talker, url):
        link = connect(url)
        session = begun(link)
        talker.streams[0].say(*(Final(n, f" {n}", (), n, n + 1, "en") for n in range(5)))
        seen = [json.loads(link.recv(timeout=20)) for _ in range(5)]
        reset(link)
        lost(caplog)
        for times, last in enumerate((seen[1]["seq"], seen[3]["seq"]), 2):
            with connect(url) as again:
                resumed(again, session, last)
                repeated = [json.loads(again.recv(timeout=20)) for _ in range(5 - last)]
                assert repeated == seen[last:]
                vanish(again)
            lost(caplog, times)
        with connect(url) as again:
            # What was said to have arrived is not kept.
            say(again, "resume", session=session, last_event=seen[1]["seq"])
            assert [each["code"] for each in heard(again)] == ["events_gone"]
            assert again.close_code == 1008


@pytest.mark.parametrize("session", ["", "s_", "s_" + "x" * 32, 5, None, ["s_"], "\\ud800"])
def test_a_name_that_opens_nothing_learns_nothing(session: object) -> None:
    with serving() as (_, url), connect(url) as link:
        say(link, "resume", session=session, last_event=0)
        (error,) = heard(link)
        expected = "unknown_session" if isinstance(session, str) and session else "invalid_value"
        assert error["code"] == expected
        assert link.close_code == 1008


@pytest.mark.parametrize("last", [-1, 1.5, "1", None, True, 2**80, [1]])
def test_a_last_event_that_is_none_is_explained(last: object) -> None:
    with serving() as (_, url), connect(url) as link, connect(url) as other:
        session = begun(other)
        say(link, "resume", session=session, last_event=last)
        (error,) = heard(link)
        assert (error["code"], error["param"]) == ("invalid_value", "last_event")
        assert link.close_code == 1008


def test_a_last_event_in_the_future_is_an_error_that_costs_the_session_nothing() -> None:
    with serving() as (_, url), connect(url) as other:
        session = begun(other)
        with connect(url) as link:
            say(link, "resume", session=session, last_event=1000)
            (error,) = heard(link)
            assert (error["code"], error["param"]) == ("invalid_value", "last_event")
        other.send(SECOND)
        say(other, "end")
        assert heard(other)[-1]["reason"] == "client"


def test_a_session_is_its_keys(caplog: pytest.LogCaptureFixture) -> None:
    def bearer(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    with serving(api_keys=("one", "two")) as (_, url):
        link = connect(url, additional_headers=bearer("one"))
        session = begun(link)
        vanish(link)
        lost(caplog)
        answers = []
        for key, name in (("two", session), ("one", session + "x"), ("two", "s_nothing")):
            with connect(url, additional_headers=bearer(key)) as thief:
                say(thief, "resume", session=name, last_event=0)
                (answer,) = heard(thief)
                del answer["request"]  # of each connection its own
                answers.append(answer)
        assert answers[0] == answers[1] == answers[2]
        assert answers[0]["code"] == "unknown_session"
        with connect(
            url,
            subprotocols=["open-speech", "open-speech-key.one"],  # type: ignore[list-item]
        ) as again:
            assert resumed(again, session, 0)["session"] == session


def test_names_cannot_be_guessed_and_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    names = []
    with serving() as (_, url):
        for _ in range(3):
            link = connect(url)
            names.append(begun(link))
            vanish(link)
        lost(caplog, 3)
    assert len(set(names)) == 3
    assert all(len(name) >= 2 + 128 / 6 for name in names)
    assert not any(name in record.getMessage() for name in names for record in caplog.records)


def test_a_new_connection_takes_over_from_one_that_seems_alive() -> None:
    with serving() as (talker, url), connect(url) as old:
        session = begun(old)
        old.send(SECOND)
        last = heard(old, "ack")[-1]["seq"]
        with connect(url) as new:
            assert resumed(new, session, last)["received"] == len(SECOND)
            told = heard(old)
            assert [each["code"] for each in told if each["type"] == "error"] == ["replaced"]
            assert old.close_code == 1008
            with pytest.raises(ConnectionClosed):
                old.send(SECOND)
            new.send(SECOND)
            say(new, "end")
            assert heard(new)[-1]["received"] == 2 * len(SECOND)
        assert talker.streams[0].received == 32_000


def test_what_a_replaced_connection_still_had_is_not_counted() -> None:
    with serving() as (talker, url), connect(url) as old:
        session = begun(old)
        old.send(SECOND)
        last = heard(old, "ack")[-1]["seq"]
        stream = talker.streams[0]
        stream.call(stream.room.clear)  # the engine is behind
        for _ in range(4):
            old.send(SECOND)
        with connect(url) as new:
            say(new, "resume", session=session, last_event=last)
            assert heard(old)[-1]["code"] == "replaced"
            stream.call(stream.room.set)  # the piece that was under way arrives, and no other
            received = json.loads(new.recv(timeout=20))["received"]
            assert len(SECOND) < received < 5 * len(SECOND)
            new.send((SECOND * 5)[received:])
            say(new, "end")
            assert heard(new)[-1]["received"] == 5 * len(SECOND)
        assert stream.received == 5 * 16_000


def test_of_two_that_resume_at_once_one_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as (talker, url):
        link = connect(url)
        session = begun(link)
        vanish(link)
        lost(caplog)
        links = [connect(url) for _ in range(4)]
        for each in links:
            say(each, "resume", session=session, last_event=0)
        closed = []
        threads = [
            threading.Thread(target=lambda each=each: closed.append((each, heard(each))))  # type: ignore[misc]
            for each in links
        ]
        for thread in threads:
            thread.start()
        awaited(lambda: len(closed) == 3)
        (winner,) = [each for each in links if each not in [one for one, _ in closed]]
        winner.send(SECOND)
        say(winner, "end")
        for thread in threads:
            thread.join(20)
        codes = [
            each["code"] for link, told in closed[:3] for each in told if each["type"] == "error"
        ]
        assert codes == ["replaced"] * 3
        assert closed[3][1][-1]["type"] == "end"
        assert talker.streams[0].received == 16_000
        assert len(talker.streams) == 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that were begun."""
    found: list[Session] = []
    begin = Session.begin

    def noticed(self: Session, connection: Any) -> None:
        found.append(self)
        begin(self, connection)

    monkeypatch.setattr(Session, "begin", noticed)
    return found


def test_who_resumes_with_events_that_are_gone_takes_nothing_from_who_has_it(
    made: list[Session],
) -> None:
    with serving() as (talker, url), connect(url) as old:
        session = begun(old)
        old.send(SECOND)
        last = heard(old, "ack")[-1]["seq"]
        assert last > 0
        stream = talker.streams[0]
        stream.call(stream.room.clear)
        for _ in range(2):
            old.send(SECOND)
        with connect(url) as new, connect(url) as late:
            say(new, "resume", session=session, last_event=last)
            assert heard(old)[-1]["code"] == "replaced"
            say(late, "resume", session=session, last_event=0)
            awaited(lambda: bool(made[0]._handover._waiters))
            stream.call(stream.room.set)
            assert [each["code"] for each in heard(late)] == ["events_gone"]
            assert heard(new, "ready")[-1]["session"] == session
            say(new, "end")
            assert heard(new)[-1]["type"] == "end"
        assert stream.closed.wait(10)
        awaited(lambda: made[0].gone)


def test_a_resume_that_comes_to_nothing_leaves_the_session_to_expire(made: list[Session]) -> None:
    class Another:
        async def replace(self) -> None:
            pass

    with serving(resume_seconds=0.2) as (talker, url), connect(url) as old:
        begun(old)
        old.send(SECOND)
        last = heard(old, "ack")[-1]["seq"]
        stream = talker.streams[0]
        awaited(lambda: stream.received == 16_000 and made[0]._inbox._unfinished_tasks == 0)  # type: ignore[attr-defined]
        stream.call(stream.room.clear)
        old.send(SECOND)
        awaited(lambda: bool(made[0]._inbox._unfinished_tasks))  # type: ignore[attr-defined]
        resuming = asyncio.run_coroutine_threadsafe(made[0].resume(Another(), last), stream._loop)
        assert heard(old)[-1]["code"] == "replaced"
        resuming.cancel()
        assert stream.closed.wait(10)
        awaited(lambda: made[0].gone)


def test_who_is_coming_back_keeps_its_place_and_no_session_that_is_over(
    made: list[Session],
) -> None:
    with serving(client_streams=1) as (talker, url), connect(url) as link:
        session = begun(link)
        link.send(SECOND)
        last = heard(link, "ack")[-1]["seq"]
        stream = talker.streams[0]
        awaited(lambda: stream.received == 16_000 and made[0]._inbox._unfinished_tasks == 0)  # type: ignore[attr-defined]
        stream.call(stream.room.clear)
        link.send(SECOND)
        awaited(lambda: made[0]._inbox._unfinished_tasks == 1)  # type: ignore[attr-defined]
        before = made[0]._connection
        assert before is not None
        stream.call(lambda: made[0].detach(before, over=False))  # as when its reader stalls
        awaited(lambda: made[0]._connection is None)
        with connect(url) as again, connect(url) as other:
            say(again, "resume", session=session, last_event=last)
            awaited(lambda: made[0]._connection is not None)
            say(other, "start")
            assert heard(other)[-1]["code"] == "rate_limit_exceeded"
            stream.call(made[0].close)
            assert [each["code"] for each in heard(again)] == ["unknown_session"]


@contextmanager
def broken_while_its_audio_waits(
    made: list[Session], caplog: pytest.LogCaptureFixture, **settings: object
) -> Iterator[tuple[Chatter, str, str]]:
    """A stream, its session and the server's address: the engine takes nothing while three seconds wait, and RST."""
    with serving(**settings) as (talker, url):  # type: ignore[arg-type]
        link = connect(url)
        session = begun(link)
        stream = talker.streams[0]
        stream.call(stream.room.clear)
        for _ in range(3):
            link.send(SECOND)
        awaited(lambda: made[0]._inbox._unfinished_tasks == 1)  # type: ignore[attr-defined]
        reset(link)
        stream.say(Partial(0, 1, " one", ""))  # what is not read tells nothing; what is said does
        if settings.get("resume_seconds") != 0:
            lost(caplog)
        yield stream, session, url


def test_a_broken_connection_is_noticed_while_its_audio_waits(
    made: list[Session], caplog: pytest.LogCaptureFixture
) -> None:
    with broken_while_its_audio_waits(made, caplog) as (stream, session, url):
        assert stream.received == 0
        stream.call(stream.room.set)
        awaited(lambda: stream.received >= 16_000)  # what came is heard all the same
        with connect(url) as again:
            received = resumed(again, session, 0)["received"]
            assert received >= len(SECOND)
            again.send((SECOND * 3)[received:])
            say(again, "end")
            assert heard(again)[-1]["received"] == 3 * len(SECOND)
        assert stream.received == 3 * 16_000
        assert noted(caplog, "resumed after") == 1


def test_who_comes_back_while_its_audio_waits_loses_nothing(
    made: list[Session], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        broken_while_its_audio_waits(made, caplog) as (stream, session, url),
        connect(url) as again,
    ):
        say(again, "resume", session=session, last_event=0)
        awaited(lambda: made[0]._expiry is None)
        stream.call(stream.room.set)
        received = json.loads(again.recv(timeout=20))["received"]
        assert 0 < received <= len(SECOND)  # the piece that was under way
        again.send((SECOND * 3)[received:])
        say(again, "end")
        assert heard(again)[-1]["received"] == 3 * len(SECOND)
        assert stream.received == 3 * 16_000


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_session_does_not_outlive_its_time_because_audio_waits(
    seconds: float, made: list[Session], caplog: pytest.LogCaptureFixture
) -> None:
    with broken_while_its_audio_waits(made, caplog, resume_seconds=seconds) as (stream, _, url):
        assert stream.closed.wait(10)
        assert made[0].gone
        with connect(url) as other:
            begun(other)


def test_who_is_away_gives_its_place_though_its_audio_waits(
    made: list[Session], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        broken_while_its_audio_waits(made, caplog, client_streams=1) as (stream, _, url),
        connect(url) as other,
    ):
        begun(other)
        assert stream.closed.is_set()


def test_who_lost_the_connection_after_end_gets_the_last_finals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as (talker, url):
        link = connect(url)
        session = begun(link)
        stream = talker.streams[0]
        stream.call(stream.ending.clear)
        link.send(SECOND)
        say(link, "end")
        awaited(lambda: stream._utterance == 1)
        vanish(link)
        lost(caplog)
        stream.call(stream.ending.set)
        awaited(stream.closed.is_set)  # the recogniser is free, the text is kept
        with connect(url) as again:
            assert resumed(again, session, 0)["received"] == len(SECOND)
            with suppress(ConnectionClosed):  # the server may be through already
                say(again, "commit", marker="again")
                say(again, "end")  # the client cannot know that it arrived
            kinds = [each["type"] for each in heard(again) if each["type"] != "ack"]
            assert kinds == ["speech_started", "speech_stopped", "final", "end"]
            assert again.close_code == 1000
        awaited(lambda: noted(caplog, "closed with 1000") == 1)
        with connect(url) as late:
            say(late, "resume", session=session, last_event=0)
            assert [each["code"] for each in heard(late)] == ["unknown_session"]


def test_the_last_words_are_kept_until_the_client_answers_the_close(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as (_, url):
        link = connect(url)
        session = begun(link)
        link.send(SECOND)
        say(link, "end")
        reset(link)  # whether they arrived nobody knows
        lost(caplog)
        with connect(url) as again:
            resumed(again, session, 0)
            with suppress(ConnectionClosed):
                say(again, "end")
            assert heard(again)[-1]["type"] == "end"


def test_a_client_that_leaves_with_1000_leaves_for_good() -> None:
    with serving() as (talker, url):
        with connect(url) as link:
            session = begun(link)
            link.send(SECOND)
        assert talker.streams[0].closed.wait(10)
        with connect(url) as again:
            say(again, "resume", session=session, last_event=0)
            assert [each["code"] for each in heard(again)] == ["unknown_session"]


def test_a_page_that_goes_away_may_come_back(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as (_, url):
        link = connect(url)
        session = begun(link)
        link.close(1001)
        lost(caplog)
        with connect(url) as again:
            assert resumed(again, session, 0)["session"] == session


def test_a_peer_that_answers_no_ping_may_come_back(caplog: pytest.LogCaptureFixture) -> None:
    with serving(ping=0.1) as (talker, url):
        link = connect(url, ping_interval=None)
        session = begun(link)
        answer = link.protocol.send_frame

        def deaf(frame: Frame) -> None:
            if frame.opcode is not Opcode.PONG:
                answer(frame)

        link.protocol.send_frame = deaf  # type: ignore[method-assign]
        with pytest.raises(ConnectionClosed):
            link.recv(timeout=20)
        lost(caplog)
        with connect(url) as again:
            assert resumed(again, session, 0)["received"] == 0
        assert len(talker.streams) == 1


def test_without_resume_nothing_is_kept() -> None:
    with serving(resume_seconds=0.0) as (talker, url):
        link = connect(url)
        say(link, "start")
        ready = heard(link, "ready")[0]
        assert ready["resumable_seconds"] == 0
        vanish(link)
        assert talker.streams[0].closed.wait(10)
        with connect(url) as again:
            say(again, "resume", session=ready["session"], last_event=0)
            assert [each["code"] for each in heard(again)] == ["unknown_session"]


def test_of_a_session_that_nobody_resumes_nothing_stays(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Session]] = []
    begin = Session.begin

    def noticed(self: Session, connection: Any) -> None:
        made.append(weakref.ref(self))
        begin(self, connection)

    monkeypatch.setattr(Session, "begin", noticed)
    with serving(resume_seconds=0.2) as (talker, url):
        for encoding in ("pcm_s16le", "container", "opus"):
            link = connect(url)
            begun(link, encoding=encoding)
            link.send(
                contained(tone(1.0), "webm-opus")[:3000]
                if encoding == "container"
                else SECOND
                if encoding == "pcm_s16le"
                else packets(tone(1.0))[0]
            )
            heard(link, "ack")
            vanish(link)
        awaited(lambda: noted(caplog, "was not resumed") == 3)
        assert all(stream.closed.wait(10) for stream in talker.streams)

        def nothing() -> bool:
            gc.collect()
            return all(each() is None for each in made)

        awaited(nothing)
        assert len(made) == 3
    assert "container" not in [each.name for each in threading.enumerate()]


def test_too_many_that_wait_push_out_the_oldest(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "APART", 2)
    with serving() as (talker, url):
        names = []
        for times in range(3):
            link = connect(url)
            names.append(begun(link))
            vanish(link)
            lost(caplog, times + 1)
        assert talker.streams[0].closed.wait(10)
        for name, expected in zip(names, ("error", "ready", "ready"), strict=True):
            with connect(url) as again:
                assert resumed(again, name, 0)["type"] == expected


def test_what_all_that_wait_hold_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "APART_BYTES", 50_000)
    with serving() as (talker, url):
        for times in range(3):
            link = connect(url)
            begun(link)
            talker.streams[-1].say(Final(0, " word" * 4000, (), 0, 1, "en"))
            heard(link, "final")
            vanish(link)
            lost(caplog, times + 1)
        assert talker.streams[0].closed.wait(10)
        assert not talker.streams[2].closed.is_set()


def test_who_is_away_gives_its_place_to_who_is_here(caplog: pytest.LogCaptureFixture) -> None:
    with running(with_toy(max_streams=1)) as base:
        url = base.replace("http", "ws") + "/v1/audio/transcriptions/stream"
        link = connect(url)
        session = begun(link)
        with connect(url) as other:
            say(other, "start")
            assert heard(other)[-1]["code"] == "overloaded"
        vanish(link)
        lost(caplog)
        with connect(url) as other:
            begun(other)
            with connect(url) as again:
                say(again, "resume", session=session, last_event=0)
                assert [each["code"] for each in heard(again)] == ["unknown_session"]


def test_of_its_own_share_a_caller_gives_its_own_place(caplog: pytest.LogCaptureFixture) -> None:
    keys = {name: {"Authorization": f"Bearer {name}"} for name in ("one", "two")}
    with serving(api_keys=("one", "two"), client_streams=1) as (talker, url):
        for name in ("two", "one"):
            link = connect(url, additional_headers=keys[name])
            begun(link)
            vanish(link)
            lost(caplog, len(talker.streams))
        with connect(url, additional_headers=keys["one"]) as other:
            begun(other)
            assert [stream.closed.is_set() for stream in talker.streams] == [False, True, False]
            with connect(url, additional_headers=keys["one"]) as third:
                say(third, "start")
                assert heard(third)[-1]["code"] == "rate_limit_exceeded"


def test_a_reader_that_stalls_is_left_and_may_come_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "STALL", 0.2)
    with running(with_engine(talker := Talker())) as base, wire(base) as line:
        path = "/v1/audio/transcriptions/stream"
        link = connect(line.url.replace("http", "ws") + path, max_size=None)
        session = begun(link)
        line.stalled = True
        texts = [f" {number}" + "x" * 200_000 for number in range(15)]
        talker.streams[0].say(*(Final(n, texts[n], (), n, n + 1, "en") for n in range(15)))
        lost(caplog)
        with connect(base.replace("http", "ws") + path) as again:
            resumed(again, session, 0)
            say(again, "end")
            found = [each for each in heard(again) if each["type"] == "final"]
        assert [each["text"] for each in found] == [text.strip() for text in texts]
        assert [each["seq"] for each in found] == list(range(1, 16))
        line.stalled = False


def test_a_message_beside_a_session_is_a_slip() -> None:
    with serving() as (_, url), connect(url) as link:
        session = begun(link)
        say(link, "resume", session=session, last_event=0)
        assert heard(link, "error")[-1]["code"] == "started"
        say(link, "end")
        assert heard(link)[-1]["type"] == "end"


@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le", "mulaw", "opus", "container"])
def test_bytes_count_exactly_over_many_connections(
    encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In every encoding, cut within samples and within containers."""
    audio = tone(4.0)
    if encoding == "opus":
        pieces = packets(audio)
    else:
        data = contained(audio, "webm-opus") if encoding == "container" else pcm(audio)
        pieces = [data[at : at + 3333] for at in range(0, len(data), 3333)]
    total = sum(map(len, pieces))
    with serving() as (talker, url), connect(url) as whole:
        begun(whole, encoding=encoding)
        for piece in pieces:
            whole.send(piece)
        say(whole, "end")
        assert heard(whole)[-1]["received"] == total
        link, todo, cuts = connect(url), pieces, 0
        session = begun(link, encoding=encoding)
        size = max(1, len(pieces) // 5)
        while len(todo) > size:
            for piece in todo[:size]:
                link.send(piece)
            vanish(link)
            cuts += 1
            lost(caplog, cuts)
            link = connect(url)
            todo = list(rest(pieces, resumed(link, session, 0)["received"]))
        for piece in todo:
            link.send(piece)
        say(link, "end")
        assert heard(link)[-1]["received"] == total
        assert cuts >= 3
        assert talker.streams[1].received == talker.streams[0].received


def rest(pieces: list[bytes], received: int) -> Iterator[bytes]:
    """What is left of `pieces` after so many bytes."""
    for piece in pieces:
        if received < len(piece):
            yield piece[received:]
        received = max(0, received - len(piece))


class Caller:
    """A client that does all the protocol asks for, over connections that it drops."""

    def __init__(self, url: str, encoding: str) -> None:
        self.url = url
        self.audio = b""
        self.sent = 0
        self.commits: list[tuple[int, str]] = []  # position and marker of those without an answer
        self.heard: list[dict[str, Any]] = []
        self.links = [connect(url)]
        say(self.link, "start", encoding=encoding, sample_rate=16000)
        self.session = str(self.take()["session"])

    @property
    def link(self) -> ClientConnection:
        return self.links[-1]

    def take(self, timeout: float = 20.0) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.link.recv(timeout=timeout))
        self.heard.append(message)
        if message["type"] == "marker":
            self.commits = [each for each in self.commits if each[1] != message["marker"]]
        return message

    def send(self) -> None:
        while self.sent < len(self.audio):
            self.link.send(self.audio[self.sent : self.sent + 5000])
            self.sent += min(5000, len(self.audio) - self.sent)

    def commit(self, number: int) -> None:
        self.commits.append((len(self.audio), str(number)))
        say(self.link, "commit", marker=str(number))

    def again(self) -> None:
        last = max(each["seq"] for each in self.heard)
        self.links.append(connect(self.url))
        ready = resumed(self.link, self.session, last)
        assert ready["type"] == "ready", ready
        self.sent = ready["received"]
        assert self.sent <= len(self.audio)
        for at, marker in self.commits:
            if at >= self.sent:
                self.link.send(self.audio[self.sent : at])
                self.sent = at
                say(self.link, "commit", marker=marker)
        self.send()

    def finish(self) -> None:
        say(self.link, "end")
        while self.heard[-1]["type"] != "end":
            self.take()
        for link in self.links:
            link.close()


DEEDS = st.lists(
    st.integers(1, 40_000) | st.sampled_from(["commit", "hear", "reset", "vanish", "take over"]),
    max_size=14,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Talker, str]]:
    with serving() as found:
        yield found


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(encoding=st.sampled_from(["pcm_s16le", "pcm_f32le", "mulaw"]), deeds=DEEDS)
def test_whatever_connections_do_the_session_is_one(
    shared: tuple[Talker, str], encoding: str, deeds: list[int | str]
) -> None:
    talker, url = shared
    caller = Caller(url, encoding)
    stream = talker.streams[-1]
    markers = 0
    for deed in deeds:
        match deed:
            case int(size):
                caller.audio += bytes(size)
                caller.send()
            case "commit":
                caller.commit(markers)
                markers += 1
            case "hear":
                with suppress(TimeoutError):
                    while True:
                        caller.take(timeout=0)
            case "reset":
                reset(caller.link)
                caller.again()
            case "vanish":
                vanish(caller.link)
                caller.again()
            case _:
                caller.again()
    caller.finish()
    assert [each["seq"] for each in caller.heard] == list(range(len(caller.heard)))
    width = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1}[encoding]
    assert caller.heard[-1]["received"] == len(caller.audio)
    assert stream.received == len(caller.audio) // width
    said = [each for each in caller.heard if each["type"] == "final"]
    assert sum(int(each["text"].split()[0]) for each in said) == stream.received
    answered = [each["marker"] for each in caller.heard if each["type"] == "marker"]
    assert list(dict.fromkeys(answered)) == [str(number) for number in range(markers)]


@pytest.mark.parametrize("size", [1, 3, 1762, 44_100])
def test_a_usual_message_counts_before_its_connection_can_go(size: int) -> None:
    """It is heard in the connection's task: if that is cancelled, then before or after the message, never within."""

    class Unlimited:
        ready = True

        async def ask(self) -> None:
            pass

        def hear(self, samples: int) -> None:
            pass

        async def close(self) -> None:
            pass

    class Here:
        async def replace(self) -> None:
            raise AssertionError("nobody else comes")

    async def scenario() -> None:
        register, connection, audio = (
            Sessions(context(Talker())),
            Here(),
            pcm(tone(1.0, rate=44_100)),
        )
        opening = native.parse({"sample_rate": 44_100})
        stream, source = Chatter(), live.source("pcm_s16le", 44_100, 1)
        session = Session(
            register,
            stream,
            source,
            opening,
            native.Reader(None),
            b"",
            Unlimited(),  # type: ignore[arg-type]
        )
        register.add(session)
        session.begin(connection)
        for at in range(0, len(audio), size):
            doing = session.do(native.Audio(audio[at : at + size]), connection)
            doing.send(None)
            assert session.received == min(at + size, len(audio))
            with suppress(asyncio.CancelledError):
                doing.throw(asyncio.CancelledError)
        whole = live.source("pcm_s16le", 44_100, 1)
        assert np.array_equal(stream.samples, np.concatenate([*whole.decode(audio)]))
        session.close()
        await session.wait_closed()

    asyncio.run(scenario())
