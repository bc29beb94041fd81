"""What a session leaves behind: nothing that only the collection of cycles, which comes rarely, would free."""

import asyncio
import gc
import json

import pytest
import websockets

from streaming.local import LocalStream
from streaming.scheduler import Job
from streaming.timeline import Timeline
from tests.drive import speak
from tests.fakes import pcm
from tests.serving import running, with_scripted

NATIVE, REALTIME = "/v1/audio/transcriptions/stream?sample_rate=16000", "/v1/realtime"


def held() -> int:
    return sum(isinstance(each, LocalStream | Timeline | Job) for each in gc.get_objects())


@pytest.mark.parametrize(
    ("path", "polite"),
    [(NATIVE, True), (REALTIME, True), (REALTIME, False)],
    ids=["native", "realtime", "realtime, left"],
)
def test_a_session_that_is_over_holds_no_audio(path: str, polite: bool) -> None:
    async def talk(url: str) -> None:
        async with websockets.connect(url.replace("http", "ws") + path) as socket:
            if path == REALTIME:
                given = {"transcription": {"model": "toy"}}
                update = {"type": "transcription", "audio": {"input": given}}
                await socket.send(json.dumps({"type": "session.update", "session": update}))
                await socket.send('{"type": "input_audio_buffer.append", "audio": "AAAA"}')
            else:
                await socket.send(pcm(speak([1, 2, 3, 0.8, 4])))
            if polite:
                end = "session.close" if path == REALTIME else "end"
                await socket.send(json.dumps({"type": end}))
                async for _ in socket:
                    pass

    async def until_over() -> None:
        while held():
            await asyncio.sleep(0.01)

    with running(with_scripted(resume_seconds=0)) as url:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                asyncio.run(talk(url))
            asyncio.run(asyncio.wait_for(until_over(), 20))
        finally:
            gc.enable()
