"""faster-whisper-server's socket, as its clients use it, against a running server with a real Whisper."""

import asyncio
import json
from collections.abc import Iterator

import numpy as np
import pytest
import websockets

from tests.fakes import lines, pcm, silence, speech, word_errors
from tests.serving import running, with_toy


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy(max_no_data_seconds=0.3)) as url:
        yield url.replace("http", "ws") + "/v1/audio/transcriptions"


def talk(address: str, audio: bytes, *, size: int = 3200) -> tuple[list[str], int | None, str]:
    """What the server says to `audio`, and how it closes. The client only ever sends audio."""

    async def run() -> tuple[list[str], int | None, str]:
        async with websockets.connect(address) as socket:
            try:
                for at in range(0, len(audio), size):
                    await socket.send(audio[at : at + size])
            except websockets.ConnectionClosed:
                pass
            found = []
            try:
                async for message in socket:
                    found.append(str(message))
            except websockets.ConnectionClosedError:
                pass
            return found, socket.close_code, socket.close_reason or ""

    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("form", ["json", "text", "verbose_json"])
def test_the_whole_transcript_comes_after_each_change_and_nothing_is_lost(
    url: str, form: str
) -> None:
    audio = pcm(np.concatenate([speech("000-en.flac"), silence(0.8), speech("001-en.flac")]))
    messages, code, _ = talk(f"{url}?model=toy&response_format={form}&vad_filter=false", audio)
    assert code == 1000
    texts = messages if form == "text" else [json.loads(message)["text"] for message in messages]
    assert len(texts) > 1
    for one, next_one in zip(texts, texts[1:], strict=False):
        assert next_one.startswith(one), "what is confirmed never changes"
        assert next_one != one
    truth = f"{lines()[0].text} {lines()[1].text}"
    assert word_errors(truth, texts[-1]) <= 2
    if form == "json":
        assert set(json.loads(messages[-1])) == {"text"}
    if form == "verbose_json":
        last = json.loads(messages[-1])
        assert (last["task"], last["language"], last["segments"]) == ("transcribe", "english", [])
        assert "".join(word["word"] for word in last["words"]).strip() == texts[-1]
        starts = [word["start"] for word in last["words"]]
        assert starts == sorted(starts)
        assert set(last["words"][0]) == {"word", "start", "end", "probability"}
        assert last["duration"] == pytest.approx(len(audio) / 32000, abs=0.001)


def test_a_long_pause_in_the_audio_ends_it(url: str) -> None:
    async def run() -> tuple[list[str], int | None]:
        async with websockets.connect(f"{url}?response_format=text") as socket:

            async def feed() -> None:
                await socket.send(pcm(speech("000-en.flac")))
                try:
                    while True:  # as an open microphone does
                        await socket.send(pcm(silence(0.1)))
                        await asyncio.sleep(0)
                except websockets.ConnectionClosed:
                    pass

            feeding = asyncio.create_task(feed())
            found = [str(message) async for message in socket]
            await feeding
            return found, socket.close_code

    found, code = asyncio.run(asyncio.wait_for(run(), 60))
    assert code == 1000
    assert word_errors(lines()[0].text, found[-1]) <= 1


def test_silence_alone_says_nothing_and_ends(url: str) -> None:
    messages, code, _ = talk(url, pcm(silence(1)))
    assert (messages, code) == ([], 1000)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("response_format=srt", "must be one of json, text, verbose_json"),
        ("language=xx", "is not known here"),
        ("temperature=warm", "number from 0 to 1"),
        ("model=nope", "does not exist"),
    ],
)
def test_mistakes_are_the_reason_of_the_close(url: str, query: str, expected: str) -> None:
    messages, code, reason = talk(f"{url}?{query}", b"")
    assert messages == []
    assert code == 1008
    assert expected in reason


def test_a_key_is_asked_for() -> None:
    with running(with_toy(api_keys=("secret",))) as url:
        address = url.replace("http", "ws") + "/v1/audio/transcriptions"
        assert talk(address, b"")[1:] == (1008, "a valid API key is needed")
