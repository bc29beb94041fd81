"""Rows R: connections that break, and servers that go, under clients that mean to go on. No word is lost or doubled."""

import asyncio
import json
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import websockets
from websockets.sync.client import connect

from open_speech_client import End, Event, Final, Ready, Reconnecting, aio, async_connect
from tests.drive import speak
from tests.fakes import pcm, wav
from tests.faults.process import PATIENCE, ROOT, Process, alive, rest, serving, spelt, until, words
from tests.proxy import Wire, wire

PIECE = 3200
"""Bytes: 100 ms."""


@pytest.fixture(scope="module")
def patient() -> Iterator[Process]:
    """One server that waits for its clients, for the tests that leave it as it was."""
    with serving() as process:
        yield process


def speech(first: int, sentences: int) -> list[int | float]:
    """Sentences of six words, no two alike."""
    said: list[int | float] = []
    for number in range(sentences):
        said += [0.3, *words(first + 11 * number, 6), 0.7]
    return said


async def heard(
    url: str, said: list[int | float], pace: Callable[[int], Awaitable[None]]
) -> list[Event]:
    """All events of a stream that says so; `pace` is called after each piece."""
    audio = pcm(speak(said))
    async with asyncio.timeout(120), async_connect(url, reconnect=60.0) as stream:

        async def feed() -> None:
            for at in range(0, len(audio), PIECE):
                await stream.send(audio[at : at + PIECE])
                await pace(at // PIECE)
            await stream.end()

        feeding = asyncio.create_task(feed())
        try:
            events = [event async for event in stream]
            await feeding
        finally:
            feeding.cancel()
    assert isinstance(events[-1], End)
    assert events[-1].received == len(audio)
    return events


def whole(events: list[Event], said: list[int | float]) -> None:
    """All words, each once, in whole sentences with numbers without gaps."""
    finals = [event for event in events if isinstance(event, Final)]
    assert " ".join(final.text for final in finals) == spelt(said)
    assert all(len(final.text.split()) == 6 for final in finals), [each.text for each in finals]
    assert [final.utterance for final in finals] == list(range(len(finals)))


def sessions(events: list[Event]) -> int:
    return len({event.session for event in events if isinstance(event, Ready)})


def together(url: str, count: int, chaos: Callable[[int], Callable[[int], Awaitable[None]]]) -> int:
    """So many streams at once, each whole. Answers how often a connection was away."""

    async def main() -> int:
        talks = [speech(number, 8) for number in range(count)]
        found = await asyncio.gather(
            *(heard(url, said, chaos(number)) for number, said in enumerate(talks))
        )
        for events, said in zip(found, talks, strict=True):
            whole(events, said)
        return sum(isinstance(event, Reconnecting) for events in found for event in events)

    return asyncio.run(main())


@contextmanager
def wires(server: Process, count: int) -> Iterator[list[Wire]]:
    with ExitStack() as stack:
        yield [stack.enter_context(wire(server.url)) for _ in range(count)]


@pytest.mark.quick
@pytest.mark.fault(
    "R01", "resets at 500 random moments", "each session goes on; the same words, each event once"
)
def test_resets_at_random_moments(patient: Process) -> None:
    """RST on the wires of 25 streams, some 20 times on each, at random steps of the conversation"""
    with alive(patient), wires(patient, 25) as lines:
        resets = 0

        async def talk(number: int) -> list[Event]:
            nonlocal resets
            chance = random.Random(number)
            said = speech(number, 8)

            async def pace(at: int) -> None:
                nonlocal resets
                if chance.random() < 0.11:
                    resets += 1
                    lines[number].reset()
                await asyncio.sleep(0.005)

            events = await heard(lines[number].url, said, pace)
            whole(events, said)
            assert sessions(events) == 1
            numbers = [each.seq for each in events if not isinstance(each, Ready | Reconnecting)]
            assert numbers == sorted(set(numbers))
            return events

        async def main() -> None:
            await asyncio.gather(*(talk(number) for number in range(25)))

        asyncio.run(main())
        assert resets >= 400


@pytest.mark.fault(
    "R02", "wires that go dead without a word", "found out in seconds; the same session, the words"
)
@pytest.mark.parametrize("moment", [2, 30, 90])
def test_wires_that_go_dead(patient: Process, moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy stops passing anything either way, and keeps both connections; a new one gets through"""
    monkeypatch.setattr(aio, "HUSH", 0.5)
    said = speech(3, 8)
    with alive(patient), wire(patient.url) as dead, wire(dead.url) as line:

        async def pace(at: int) -> None:
            if at == moment:
                dead.stalled = True
                line.target = patient.url
            await asyncio.sleep(0)

        events = asyncio.run(heard(line.url, said, pace))
        dead.stalled = False
        whole(events, said)
        assert sessions(events) == 1


@pytest.mark.fault(
    "R03", "a client that is stopped for a while", "it goes on where it was; no final twice"
)
def test_a_client_that_is_stopped(patient: Process, tmp_path: object) -> None:
    """SIGSTOP of `open-speech stream` for five seconds in mid-speech, its wire reset meanwhile, then SIGCONT"""
    said = speech(9, 6)
    with alive(patient), wire(patient.url) as line:
        command = [sys.executable, "-m", "server.cli", "stream", "/dev/stdin", "--url", line.url]
        file = f"{tmp_path}/said.wav"
        with open(file, "wb") as out:
            out.write(wav(speak(said)))
        command[4] = file
        with subprocess.Popen(
            [*command, "--speed", "2"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as client:
            until(lambda: line.passed > 100_000)
            client.send_signal(signal.SIGSTOP)
            line.reset()
            with pytest.raises(subprocess.TimeoutExpired):
                client.wait(5)
            client.send_signal(signal.SIGCONT)
            out_text, told = client.communicate(timeout=60)
        assert " ".join(out_text.split()) == spelt(said)
        assert "connected again" in told


@pytest.mark.fault(
    "R04",
    "2000 guesses of a session's name, and a right name with wrong numbers",
    "one answer to all of them, which tells nothing; the session does not notice",
)
def test_names_that_are_guessed(patient: Process) -> None:
    """Resumes by random, cut, lengthened and altered names, and with events of the future and none, beside a session"""
    said = speech(5, 2)
    with alive(patient), connect(patient.socket_url + "?language=en") as stream:
        session = json.loads(stream.recv(timeout=PATIENCE))["session"]
        answers = set()
        for number in range(2000):
            name = [
                "s_" + secrets.token_urlsafe(24),
                session[:-1],
                session + "A",
                session.swapcase(),
            ][number % 4]
            with connect(patient.socket_url) as thief:
                thief.send(json.dumps({"type": "resume", "session": name, "last_event": number}))
                (answer,) = rest(thief)
                del answer["request"]  # of each connection its own
                answers.add(json.dumps(answer))
                assert thief.close_code == 1008
        assert len(answers) == 1
        for last in (10**6, -1, None, "0", 0.5):
            with connect(patient.socket_url) as odd:
                odd.send(json.dumps({"type": "resume", "session": session, "last_event": last}))
                assert [each["code"] for each in rest(odd)] == ["invalid_value"]
        stream.send(pcm(speak(said)))
        stream.send('{"type": "end"}')
        found = rest(stream)
        assert found[-1]["reason"] == "client"


@pytest.mark.fault(
    "R05",
    "sessions resumed from many sockets at once, with different events",
    "the newest has it; the others are told; all are gone when nobody comes back",
)
def test_one_session_and_many_sockets() -> None:
    """20 sockets resume one session in the same moment, some with events that others let go, 20 times over"""

    async def farewell(link: websockets.ClientConnection) -> tuple[str, int | None]:
        """The error that came last, and the code of the close."""
        code = ""
        with suppress(websockets.ConnectionClosedError):
            async for message in link:
                code = json.loads(message).get("code", code)
        return code, link.close_code

    async def main() -> None:
        said, more = speech(7, 1), speech(29, 2)
        audio = pcm(speak(said))
        for _ in range(20):
            stream = await websockets.connect(server.socket_url + "?partials=false")
            session = json.loads(await stream.recv())["session"]
            await stream.send(audio)
            message = {"type": "", "seq": 0}
            while message["type"] != "final":
                message = json.loads(await stream.recv())
            last = message["seq"]
            stream.transport.abort()
            links = [await websockets.connect(server.socket_url) for _ in range(20)]
            asks = [
                json.dumps({"type": "resume", "session": session, "last_event": event})
                for event in (last, 0)
            ]
            await asyncio.gather(*(link.send(asks[at % 2]) for at, link in enumerate(links)))
            told = [asyncio.create_task(farewell(link)) for link in links]
            async with asyncio.timeout(PATIENCE):
                while sum(each.done() for each in told) < 19:
                    await asyncio.wait(
                        [each for each in told if not each.done()],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
            ends = {each.result() for each in told if each.done()}
            assert ends <= {("replaced", 1008), ("events_gone", 1008)}
            for each in told:
                each.cancel()
            for link in links:
                link.transport.abort()
        async with websockets.connect(server.socket_url) as back:
            await back.send(asks[0])
            await back.send(pcm(speak(more)))
            await back.send('{"type": "end"}')
            found = [json.loads(message) async for message in back]
        assert found[0]["received"] == len(audio)
        text = " ".join(each["text"] for each in found if each["type"] == "final")
        assert text == spelt(more)

    with serving("--resume-seconds", "10") as server, alive(server):
        asyncio.run(main())


@pytest.mark.fault(
    "R06", "the wires of 40 streams cut at once, five times", "all resume; the words of each"
)
def test_all_wires_at_once(patient: Process) -> None:
    """One proxy before 40 streams breaks all its connections, at the same moment, again and again"""
    with alive(patient), wire(patient.url) as line:
        cuts = 0

        def chaos(number: int) -> Callable[[int], Awaitable[None]]:
            async def pace(at: int) -> None:
                nonlocal cuts
                if number == 0 and at % 25 == 20 and cuts < 5:
                    cuts += 1
                    line.reset()
                await asyncio.sleep(0.02)

            return pace

        assert together(line.url, 40, chaos) >= 60  # some are still away at the next cut
        assert cuts == 5


@pytest.mark.fault(
    "R07",
    "500 clients that vanish and never come back",
    "their sessions are kept for a while, and then nothing of them is",
)
def test_clients_that_never_come_back() -> None:
    """RST in mid-word, on a server that keeps sessions for two seconds and takes 256 streams"""
    with serving("--resume-seconds", "2") as server, alive(server):
        tasks = json.loads(server.get("/counters").text)["tasks"]
        audio = pcm(speak(words(3, 4)))

        async def leave() -> None:
            for _ in range(10):
                links = [await websockets.connect(server.socket_url) for _ in range(50)]
                for link in links:
                    await link.send(audio)
                for link in links:
                    await link.recv()
                    link.transport.abort()

        asyncio.run(leave())
        until(lambda: server.open() <= 2)  # the honest one, in two figures
        until(lambda: json.loads(server.get("/counters").text)["tasks"] <= tasks + 2)


@pytest.mark.quick
@pytest.mark.fault(
    "R08",
    "a server that is stopped while streams speak, and followed by another",
    "1012; each goes on in a new session, its sentence whole",
)
def test_a_server_that_is_stopped(patient: Process) -> None:
    """SIGTERM in mid-sentence of eight streams; a proxy leads to the next server"""
    followed("SIGTERM", patient)


@pytest.mark.fault(
    "R09",
    "a server that is killed while streams speak, and followed by another",
    "each goes on in a new session, its sentence whole",
)
def test_a_server_that_is_killed(patient: Process) -> None:
    """SIGKILL in mid-sentence of eight streams; a proxy leads to the next server"""
    followed("SIGKILL", patient)


def followed(number: str, next_one: Process) -> None:
    with serving() as first, wire(first.url) as line, alive(next_one):
        over = asyncio.Event()

        def chaos(stream: int) -> Callable[[int], Awaitable[None]]:
            async def pace(at: int) -> None:
                if stream == 0 and at == 60:
                    line.target = next_one.url
                    first.signal(getattr(signal, number))
                    over.set()
                await asyncio.sleep(0.01)
                if at == 90:  # all are in the middle of their speech when it happens
                    await over.wait()

            return pace

        assert together(line.url, 8, chaos) >= 8
        assert first.wait() == (0 if number == "SIGTERM" else -9)


@pytest.mark.fault(
    "R10",
    "servers that are restarted one after another",
    "as many sessions; the words of each stream",
)
def test_a_rolling_restart() -> None:
    """Four servers, each stopped by SIGTERM a second after the last, while eight streams speak at twice the pace of speech"""
    with ExitStack() as stack:
        servers = [stack.enter_context(serving()) for _ in range(4)]
        line = stack.enter_context(wire(servers[0].url))

        def chaos(stream: int) -> Callable[[int], Awaitable[None]]:
            async def pace(at: int) -> None:
                if stream == 0 and at % 40 == 30 and at // 40 < 3:
                    line.target = servers[at // 40 + 1].url
                    servers[at // 40].signal()
                await asyncio.sleep(0.05)

            return pace

        assert together(line.url, 8, chaos) >= 24
        assert [server.wait() for server in servers[:3]] == [0, 0, 0]
        with alive(servers[3]):
            pass
