"""A server that stops while people speak to its OpenAI and faster-whisper-server sockets: every word it was given is told
before it closes."""

import asyncio
import base64
import json
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import websockets

from server import conversations
from tests.drive import speak
from tests.fakes import pcm, silence
from tests.processes import Running, serving
from tests.serving import Talker, stoppable, with_engine, with_scripted

SESSIONS = 8


def words(session: int) -> list[int]:
    return [(session * 7 + at * 5) % 60 for at in range(24)]


def audio(session: int) -> bytes:
    """Words in two turns; the second is not over when the server stops."""
    told = words(session)
    return pcm(np.concatenate([silence(0.4), speak([*told[:12], 0.9, *told[12:]])]))


def update(*, manual: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"format": {"rate": 16000}, "transcription": {"model": "toy"}}
    if manual:
        given["turn_detection"] = None
    return {
        "type": "session.update",
        "session": {"type": "transcription", "audio": {"input": given}},
    }


async def realtime(url: str, session: int, sent: asyncio.Barrier) -> tuple[str, int | None]:
    """All that one session was told, and how it was closed."""
    found: list[dict[str, Any]] = []
    async with websockets.connect(url.replace("http", "ws") + "/v1/realtime") as socket:
        await socket.send(json.dumps(update(manual=session % 2 == 1)))
        while json.loads(await socket.recv())["type"] != "session.updated":
            pass
        data = audio(session)
        for at in range(0, len(data), 3200):
            piece = base64.b64encode(data[at : at + 3200]).decode()
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": piece}))
        await sent.wait()
        try:
            async for text in socket:
                found.append(json.loads(text))
        except websockets.ConnectionClosed:
            pass
    begun = {each["item_id"] for each in found if each["type"].endswith("committed")}
    ended = {each["item_id"] for each in found if each["type"].endswith("completed")}
    assert begun == ended, "an item was begun and not completed"
    assert [each for each in found if each["type"] == "error"] == []
    texts = [each["transcript"] for each in found if each["type"].endswith("completed")]
    return " ".join(texts), socket.close_code


async def faster_whisper_server(
    url: str, session: int, sent: asyncio.Barrier
) -> tuple[str, int | None]:
    address = url.replace("http", "ws") + "/v1/audio/transcriptions?response_format=text"
    text = ""
    async with websockets.connect(address) as socket:
        data = audio(session)
        for at in range(0, len(data), 3200):
            await socket.send(data[at : at + 3200])
        await sent.wait()
        try:
            async for message in socket:
                text = str(message)
        except websockets.ConnectionClosed:
            pass
    return text, socket.close_code


async def talk(
    url: str, stop: Callable[[], object], sessions: int = SESSIONS
) -> list[tuple[str, int | None]]:
    """Sessions of both kinds; `stop` comes as soon as the last message has left, when the server has not read it yet."""
    sent = asyncio.Barrier(2 * sessions + 1)

    async def stopped() -> None:
        await sent.wait()
        stop()

    ways = [realtime, faster_whisper_server]
    told, _ = await asyncio.wait_for(
        asyncio.gather(
            asyncio.gather(
                *(way(url, session, sent) for way in ways for session in range(sessions))
            ),
            stopped(),
        ),
        60,
    )
    return list(told)


def expect(told: list[tuple[str, int | None]], sessions: int = SESSIONS) -> None:
    spoken = [" ".join(f"w{word}" for word in words(session)) for session in range(sessions)] * 2
    assert [text for text, _ in told] == spoken
    assert {code for _, code in told} == {1012}


def test_a_server_that_stops_tells_every_word_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "GRACE", 20.0)  # a machine at work may need it
    with stoppable(with_scripted(max_no_data_seconds=30)) as (url, stop):
        expect(asyncio.run(talk(url, stop)))


def test_sigterm_ends_a_server_in_order() -> None:
    with serving(
        "--max-no-data-seconds", "30", "--drain-seconds", "30", scripted=True
    ) as server:  # a drain that waited for its limit would take longer than talk allows
        expect(asyncio.run(talk(server.url, lambda: terminate(server), 2)), 2)
    assert server.process.returncode == 0


def terminate(server: Running) -> None:
    server.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/audio/transcriptions"])
def test_a_decode_that_never_ends_does_not_hold_the_server(path: str) -> None:
    talker = Talker()

    async def run(url: str, stop: Callable[[], object]) -> int | None:
        async with websockets.connect(url.replace("http", "ws") + path) as socket:
            if path == "/v1/realtime":
                await socket.send(json.dumps(update(manual=False)))
                piece = base64.b64encode(bytes(3200)).decode()
                await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": piece}))
            else:
                await socket.send(bytes(3200))
            while not talker.streams or not talker.streams[0].pieces:
                await asyncio.sleep(0)
            talker.streams[0].call(talker.streams[0].ending.clear)
            stop()
            try:
                async for _ in socket:
                    pass
            except websockets.ConnectionClosed:
                pass
            return socket.close_code

    with stoppable(with_engine(talker, drain_seconds=0.3)) as (url, stop):
        assert asyncio.run(asyncio.wait_for(run(url, stop), 60)) == 1012
    assert talker.streams[0].closed.wait(10)
