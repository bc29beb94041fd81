"""What a session leaves behind: nothing that only the collection of cycles, which comes rarely, would free."""

import asyncio
import gc
import json
from base64 import b64encode

import pytest
import websockets

from server.sessions import Session
from streaming.local import LocalStream
from streaming.scheduler import Job
from streaming.timeline import Timeline
from tests.drive import speak
from tests.fakes import pcm
from tests.serving import running, with_scripted

SPEECH = pcm(speak([1, 2, 3, 0.8, 4]))
"""Ends within an utterance."""
NATIVE, REALTIME = "/v1/audio/transcriptions/stream?sample_rate=16000", "/v1/realtime"


def held() -> int:
    kinds = LocalStream | Timeline | Job | Session
    return sum(isinstance(each, kinds) for each in gc.get_objects())


@pytest.mark.parametrize(
    ("path", "leave", "resume_seconds"),
    [
        (NATIVE, "end", 0.0),
        (NATIVE, "goodbye", 0.0),
        (NATIVE, "break", 0.0),
        (NATIVE, "break", 0.1),
        (REALTIME, "end", 0.0),
        (REALTIME, "goodbye", 0.0),
        (REALTIME, "break", 0.0),
    ],
)
def test_a_session_that_is_over_holds_no_audio(
    path: str, leave: str, resume_seconds: float
) -> None:
    async def talk(url: str) -> None:
        async with websockets.connect(url.replace("http", "ws") + path) as socket:
            if path == REALTIME:
                given = {"transcription": {"model": "toy"}}
                update = {"type": "transcription", "audio": {"input": given}}
                await socket.send(json.dumps({"type": "session.update", "session": update}))
                append = {"type": "input_audio_buffer.append", "audio": b64encode(SPEECH).decode()}
                await socket.send(json.dumps(append))
            else:
                await socket.send(SPEECH)
            for _ in range(2 if path == REALTIME else 1):  # it has begun
                await socket.recv()
            if leave == "break":
                socket.transport.abort()
            if leave == "end":
                end = "session.close" if path == REALTIME else "end"
                await socket.send(json.dumps({"type": end}))
                async for _ in socket:
                    pass

    async def until_over() -> None:
        while held():
            await asyncio.sleep(0.01)

    with running(with_scripted(resume_seconds=resume_seconds)) as url:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                asyncio.run(talk(url))
            asyncio.run(asyncio.wait_for(until_over(), 20))
        finally:
            gc.enable()
