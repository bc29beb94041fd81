"""The Python client over a wire that breaks, to a server whose recogniser reads words that can be counted.

Each test tells the same speech and compares with what is heard when nothing breaks: the same text, every event once.
"""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
import websockets

from open_speech_client import (
    ConnectionLost,
    End,
    Event,
    Final,
    Marker,
    Partial,
    Ready,
    Reconnecting,
    SpeechStarted,
    aio,
    async_connect,
    connect,
)
from tests.drive import speak
from tests.fakes import pcm, wav
from tests.proxy import Wire, wire
from tests.serving import running, stoppable, with_scripted

SENTENCES = [[*range(at, at + 9)] for at in range(0, 54, 9)]
AUDIO = pcm(speak([each for sentence in SENTENCES for each in (0.4, *sentence, 0.8)]))
TEXT = [" ".join(f"w{word}" for word in sentence) for sentence in SENTENCES]
PIECE = 3200
"""Bytes: 100 ms."""
PIECES = len(AUDIO) // PIECE


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_scripted()) as url:
        yield url


async def listened(
    url: str,
    trouble: Callable[[int, Event | None], None],
    hold: int | None = None,
    **options: Any,
) -> list[Event]:
    """All events, while `trouble` is called after each piece that was sent, and with each event that came.

    After piece `hold` the speaker pauses until the connection is away."""
    async with async_connect(url, **options) as stream:
        away = asyncio.Event()

        async def feed() -> None:
            for at in range(0, len(AUDIO), PIECE):
                await stream.send(AUDIO[at : at + PIECE])
                if at // PIECE == hold:
                    while stream.received < at:  # all but the last piece is with the server
                        await asyncio.sleep(0.001)
                trouble(at // PIECE, None)
                if at // PIECE == hold:
                    await away.wait()
                await asyncio.sleep(0)
            await stream.end()

        feeding = asyncio.create_task(feed())
        events: list[Event] = []
        try:
            async for event in stream:
                events.append(event)
                if isinstance(event, Reconnecting):
                    away.set()
                trouble(-1, event)
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    return events


def quiet(at: int, event: Event | None) -> None:
    """No trouble."""


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def whole(events: list[Event]) -> None:
    """What every stream has to be, whatever happened to it."""
    assert [final.text for final in finals(events)] == TEXT
    assert [final.utterance for final in finals(events)] == list(range(len(TEXT)))
    assert not any(final.cut for final in finals(events))
    spans = [(final.start, final.end) for final in finals(events)]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    end = events[-1]
    assert isinstance(end, End)
    assert (end.received, end.reason) == (len(AUDIO), "client")
    assert sum(isinstance(event, End) for event in events) == 1
    # Committed words only grow, but where a new session hears an utterance again.
    committed: dict[int, str] = {}
    for event in events:
        match event:
            case Ready(resumed=False):
                committed.clear()
            case Partial(utterance=number):
                assert event.committed.startswith(committed.get(number, ""))
                committed[number] = event.committed
            case Final(utterance=number):
                assert event.text.startswith(committed.get(number, ""))


def once(events: list[Event]) -> None:
    """In one session every number comes once, in order, and nothing is missing but what the client passes over."""
    assert len({event.session for event in events if isinstance(event, Ready)}) == 1
    numbers = [event.seq for event in events if not isinstance(event, Ready | Reconnecting)]
    assert numbers == sorted(set(numbers))


def told(events: list[Event]) -> tuple[list[object], list[object]]:
    """What is the same however fast messages travel: the beginnings, and the finals."""
    begun = [(each.utterance, each.at) for each in events if isinstance(each, SpeechStarted)]
    ended = [(each.utterance, each.text, each.start, each.end) for each in finals(events)]
    return [*begun], [*ended]


@pytest.fixture(scope="module")
def undisturbed(url: str) -> list[Event]:
    events = asyncio.run(listened(url, quiet))
    whole(events)
    once(events)
    return events


@asynccontextmanager
async def patient() -> AsyncIterator[None]:
    async with asyncio.timeout(60):
        yield


def run(url: str, trouble: Callable[[int, Event | None], None], **options: Any) -> list[Event]:
    async def main() -> list[Event]:
        async with patient():
            return await listened(url, trouble, **options)

    return asyncio.run(main())


@pytest.mark.parametrize("broken", ["cut", "reset"])
@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("kind", [Ready, SpeechStarted, Partial, Final, End])
def test_a_break_at_every_step_of_the_conversation(
    url: str, undisturbed: list[Event], broken: str, kind: type[Event], nth: int
) -> None:
    with wire(url) as link:
        seen = 0

        def trouble(at: int, event: Event | None) -> None:
            nonlocal seen
            if isinstance(event, kind):
                seen += 1
                if seen == nth:
                    getattr(link, broken)()

        events = run(link.url, trouble)
    whole(events)
    once(events)
    assert told(events) == told(undisturbed)


@pytest.mark.parametrize("seed", range(12))
def test_breaks_at_random_moments(url: str, undisturbed: list[Event], seed: int) -> None:
    chance = random.Random(seed)
    with wire(url) as link:
        link.piece = chance.choice([37, 1400, 65536])
        left = 6

        def trouble(at: int, event: Event | None) -> None:
            nonlocal left
            if left and chance.random() < 0.04:
                left -= 1
                chance.choice([link.cut, link.reset])()

        events = run(link.url, trouble)
        assert link.connections > 1
    whole(events)
    once(events)
    assert told(events) == told(undisturbed)
    lost = sum(isinstance(event, Reconnecting) for event in events)
    assert lost >= 1
    assert sum(isinstance(event, Ready) for event in events) <= lost + 1


@pytest.mark.parametrize("when", [3, 40, 10**6])
def test_a_wire_that_goes_dead_without_a_word(
    url: str, undisturbed: list[Event], when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half open: both sides believe that the connection stands."""
    monkeypatch.setattr(aio, "HUSH", 0.3)
    with ExitStack() as stack:
        dead = stack.enter_context(wire(url))
        alive = stack.enter_context(wire(dead.url))

        def trouble(at: int, event: Event | None) -> None:
            if at == when or (when == 10**6 and isinstance(event, Final)):
                dead.stalled = True
                alive.target = url

        events = run(alive.url, trouble)
        dead.stalled = False
    assert any(isinstance(event, Reconnecting) for event in events)
    whole(events)
    once(events)
    assert told(events) == told(undisturbed)


def test_nobody_comes_back_in_time_and_the_stream_goes_on_in_a_new_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "server.sessions")
    with running(with_scripted(resume_seconds=0.05)) as url, wire(url) as link:

        def look() -> None:
            gone = any("was not resumed" in each.getMessage() for each in list(caplog.records))
            link.up = gone
            if not gone:
                asyncio.get_running_loop().call_later(0.02, look)

        def trouble(at: int, event: Event | None) -> None:
            if at == PIECES // 2:
                link.up = False
                link.cut()
                look()

        events = run(link.url, trouble, hold=PIECES // 2)
    assert len({event.session for event in events if isinstance(event, Ready)}) == 2
    whole(events)


def swapped(link: Wire, old: Callable[[], None], new: str) -> None:
    link.target = new
    old()


@pytest.mark.parametrize("seed", range(8))
def test_a_server_that_stops_in_mid_sentence_is_followed_by_another(url: str, seed: int) -> None:
    chance = random.Random(seed)
    with (
        stoppable(with_scripted()) as (first, stop),
        wire(first) as link,
    ):
        hold = chance.randrange(PIECES)

        def trouble(at: int, event: Event | None) -> None:
            if at == hold:
                swapped(link, stop, url)

        events = run(link.url, trouble, hold=hold)
    whole(events)
    ready = [event for event in events if isinstance(event, Ready)]
    assert len({event.session for event in ready}) == 2
    away = [event for event in events if isinstance(event, Reconnecting)]
    assert any("restart" in event.message for event in away)


@pytest.mark.parametrize("seed", range(4))
def test_a_server_that_dies_is_followed_by_one_that_knows_nothing(url: str, seed: int) -> None:
    """The other does not know the session: what had no final is heard again there."""
    chance = random.Random(seed)
    with running(with_scripted()) as first, wire(first) as link:
        hold = chance.randrange(PIECES)

        def trouble(at: int, event: Event | None) -> None:
            if at == hold:
                swapped(link, chance.choice([link.cut, link.reset]), url)

        events = run(link.url, trouble, hold=hold)
    whole(events)
    assert len({event.session for event in events if isinstance(event, Ready)}) == 2


@pytest.mark.parametrize("encoding", ["mulaw", "pcm_f32le"])
def test_other_encodings_go_on_at_the_byte(url: str, encoding: str) -> None:
    from tests.fakes import tone

    audio = tone(6.0)
    raw = audio.astype("<f4").tobytes() if encoding == "pcm_f32le" else bytes(48_000)

    async def talk(address: str, link: Wire | None) -> list[Event]:
        async with (
            patient(),
            async_connect(address, encoding=encoding, endpointing="client") as stream,  # type: ignore[arg-type]
        ):
            for number, at in enumerate(range(0, len(raw), 7001)):
                await stream.send(raw[at : at + 7001])
                if link is not None and number % 3 == 1:
                    while stream.received < at // 2:  # some of it has arrived
                        await stream.receive()
                    link.reset()
            await stream.end()
            return [event async for event in stream]

    plain = asyncio.run(talk(url, None))
    with wire(url) as link:
        events = asyncio.run(talk(link.url, link))
        assert link.connections > 1
    assert isinstance(events[-1], End)
    assert events[-1].received == len(raw)
    assert [(each.start, each.end) for each in finals(events)] == [
        (each.start, each.end) for each in finals(plain)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_recording_in_a_container_goes_on_at_the_byte(url: str, seed: int) -> None:
    """Only in the same session: its decoder is there."""
    chance = random.Random(seed)
    recording = wav(speak([each for sentence in SENTENCES for each in (0.4, *sentence, 0.8)]))

    async def talk(address: str, link: Wire) -> list[Event]:
        async with patient(), async_connect(address, encoding="container") as stream:
            for at in range(0, len(recording), 9001):
                await stream.send(recording[at : at + 9001])
                if chance.random() < 0.15:
                    link.reset()
                await asyncio.sleep(0)
            await stream.end()
            return [event async for event in stream]

    with wire(url) as link:
        events = asyncio.run(talk(link.url, link))
        assert link.connections > 1
    assert [final.text for final in finals(events)] == TEXT
    once(events)
    assert isinstance(events[-1], End)
    assert events[-1].received == len(recording)


def test_markers_are_answered_once_over_breaks(url: str) -> None:
    async def talk(address: str, link: Wire) -> list[Event]:
        events: list[Event] = []
        async with patient(), async_connect(address, endpointing="client") as stream:
            for number, sentence in enumerate(SENTENCES):
                await stream.send(pcm(speak([0.4, *sentence, 0.8])))
                await stream.commit(str(number))
                if number % 2:
                    link.reset()
            await stream.end()
            async for event in stream:
                events.append(event)
        return events

    with wire(url) as link:
        events = asyncio.run(talk(link.url, link))
    markers = [event.marker for event in events if isinstance(event, Marker)]
    assert markers == [str(number) for number in range(len(SENTENCES))]
    assert [final.text for final in finals(events)] == TEXT
    kinds = [type(event) for event in events if isinstance(event, Final | Marker)]
    assert kinds == [Final, Marker] * len(SENTENCES)


def test_the_plain_face_reconnects_as_well(url: str) -> None:
    with wire(url) as link, connect(link.url) as stream:
        events: list[Event] = []
        for at in range(0, len(AUDIO), PIECE):
            stream.send(AUDIO[at : at + PIECE])
            if at // PIECE % 50 == 30:
                link.cut()
        stream.end()
        events += stream
        assert link.connections > 1
    whole(events)
    once(events)


def test_who_cannot_go_on_says_for_how_long_it_was_tried(url: str) -> None:
    with wire(url) as link:

        def trouble(at: int, event: Event | None) -> None:
            if isinstance(event, Partial):
                link.up = False
                link.cut()

        with pytest.raises(ConnectionLost, match=r"given up after 0\.4 s"):
            run(link.url, trouble, reconnect=0.4)


def test_a_client_that_does_not_go_on_has_the_text_of_all_that_was_heard() -> None:
    """And what tells one that does: the cut sentence, and the language that the stream has settled on."""

    async def talk(address: str, stop: Callable[[], None]) -> list[dict[str, Any]]:
        path = address.replace("http", "ws") + "/v1/audio/transcriptions/stream"
        async with patient(), websockets.connect(path) as socket:
            found: list[dict[str, Any]] = []
            heard = AUDIO[: 4 * len(AUDIO) // 9]  # the third sentence is at its middle
            await socket.send(heard)
            with suppress(websockets.ConnectionClosedError):
                while True:
                    found.append(json.loads(await socket.recv()))
                    if found[-1].get("received") == len(heard) and found[-1]["type"] == "ack":
                        stop()
            assert socket.close_code == 1012
            return found

    with stoppable(with_scripted()) as (url, stop):
        found = asyncio.run(talk(url, stop))
    said = [each for each in found if each["type"] == "final"]
    assert [each["text"] for each in said[:2]] == TEXT[:2]
    assert TEXT[2].startswith(said[2]["text"])
    assert 0 < len(said[2]["text"].split()) < len(SENTENCES[2])
    assert [each.get("cut") for each in said] == [None, None, True]
    settled = [each.get("stream_language") for each in said]
    assert settled == sorted(settled, key=bool)  # never taken back
    assert settled[-1] == "en"
    assert found[-1]["reason"] == "restart"
