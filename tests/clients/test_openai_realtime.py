"""OpenAI's own SDK speaking Realtime, sync and async, against a running server with a real Whisper."""

import asyncio
import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import openai
import pytest
import soxr
from openai.types.websocket_reconnection import ReconnectingEvent

from streaming.audio.pcm import _TABLES
from streaming.types import Samples
from tests.drive import speak
from tests.fakes import lines, pcm, silence, speech, wav, word_errors
from tests.serving import running, stoppable, with_scripted, with_toy

pytestmark = pytest.mark.filterwarnings(
    "ignore:connect.. must be used as a context manager:DeprecationWarning"
)
"""The SDK uses websockets in a way that its newest version discourages."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url + "/v1"


VAD = {"type": "server_vad", "silence_duration_ms": 400}


def session(turn_detection: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "toy"},
                "turn_detection": turn_detection,
            }
        },
        **more,
    }


def pieces(samples: Samples, milliseconds: int) -> Iterator[str]:
    """Appends of 24 kHz audio."""
    audio = pcm(soxr.resample(samples, 16000, 24000))
    size = 48 * milliseconds
    for at in range(0, len(audio), size):
        yield base64.b64encode(audio[at : at + size]).decode()


@pytest.mark.parametrize("milliseconds", [20, 100])
@pytest.mark.parametrize("turn_detection", [VAD, None], ids=["server_vad", "manual"])
def test_sync(url: str, turn_detection: dict[str, Any] | None, milliseconds: int) -> None:
    client = openai.OpenAI(api_key="any", base_url=url)
    samples = np.concatenate([speech("000-en.flac"), silence(1.0)])
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(session=session(turn_detection))  # type: ignore[arg-type]
        assert connection.recv().type == "session.updated"
        for piece in pieces(samples, milliseconds):
            connection.input_audio_buffer.append(audio=piece)
        if turn_detection is None:
            connection.input_audio_buffer.commit()
        events = []
        for event in connection:
            events.append(event)
            if event.type.endswith("completed"):
                break
    expect_one_turn(events, manual=turn_detection is None)
    client.close()


@pytest.mark.parametrize("milliseconds", [20, 100])
@pytest.mark.parametrize("turn_detection", [VAD, None], ids=["server_vad", "manual"])
def test_async(url: str, turn_detection: dict[str, Any] | None, milliseconds: int) -> None:
    async def run() -> list[Any]:
        samples = np.concatenate([speech("000-en.flac"), silence(1.0)])
        async with (
            openai.AsyncOpenAI(api_key="any", base_url=url) as client,
            client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
        ):
            assert (await connection.recv()).type == "session.created"
            await connection.session.update(session=session(turn_detection))  # type: ignore[arg-type]
            assert (await connection.recv()).type == "session.updated"
            for piece in pieces(samples, milliseconds):
                await connection.input_audio_buffer.append(audio=piece)
            if turn_detection is None:
                await connection.input_audio_buffer.commit()
            events = []
            async for event in connection:
                events.append(event)
                if event.type.endswith("completed"):
                    return events
        raise AssertionError

    expect_one_turn(asyncio.run(asyncio.wait_for(run(), 60)), manual=turn_detection is None)


def expect_one_turn(events: list[Any], *, manual: bool) -> None:
    """One turn, in OpenAI's order, its deltas spelling its transcript."""
    assert len({event.item_id for event in events if getattr(event, "item_id", None)}) == 1
    deltas = [event for event in events if event.type.endswith("transcription.delta")]
    rest = [event.type for event in events if event not in deltas]
    order = [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
    ]
    if not manual:
        order = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", *order]
    assert rest == order
    completed = events[-1]
    assert "".join(each.delta for each in deltas) == completed.transcript
    assert word_errors(lines()[0].text, completed.transcript) <= 1
    assert completed.usage.type == "duration"
    assert 3 < completed.usage.seconds < 8


@pytest.mark.parametrize(("kind", "encoding"), [("audio/pcmu", "mulaw"), ("audio/pcma", "alaw")])
def test_telephone_audio_is_understood(url: str, kind: str, encoding: str) -> None:
    samples = soxr.resample(speech("000-en.flac"), 16000, 8000)
    table = _TABLES[encoding]  # type: ignore[index]
    order = np.argsort(table)
    nearest = np.clip(np.searchsorted(table[order], samples), 0, 255)
    audio = order[nearest].astype(np.uint8).tobytes()
    given = session(None)
    given["audio"]["input"]["format"] = {"type": kind}
    client = openai.OpenAI(api_key="any", base_url=url)
    # The toy knows no telephones: what it makes of the same audio as a recording is the measure.
    file = ("a.wav", wav(samples, 8000))
    expected = client.audio.transcriptions.create(file=file, model="toy").text
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        connection.session.update(session=given)  # type: ignore[arg-type]
        for at in range(0, len(audio), 801):
            piece = base64.b64encode(audio[at : at + 801]).decode()
            connection.input_audio_buffer.append(audio=piece)
        connection.input_audio_buffer.commit()
        text = next(event.transcript for event in connection if event.type.endswith("completed"))
    client.close()
    assert word_errors(expected, text) <= 1


def test_logprobs_spell_the_transcript(url: str) -> None:
    client = openai.OpenAI(api_key="any", base_url=url)
    given = session(None, include=["item.input_audio_transcription.logprobs"])
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        connection.session.update(session=given)  # type: ignore[arg-type]
        for piece in pieces(speech("000-en.flac"), 100):
            connection.input_audio_buffer.append(audio=piece)
        connection.input_audio_buffer.commit()
        events = list(iter_until_completed(connection))
    client.close()
    deltas = [each for each in events if each.type.endswith("transcription.delta")]
    for each in (*deltas, events[-1]):
        spelt = b"".join(bytes(token.bytes) for token in each.logprobs).decode()
        assert spelt == (each.delta if each in deltas else each.transcript)
        assert all(token.logprob <= 0 for token in each.logprobs)


def test_the_sdk_goes_on_with_the_next_server() -> None:
    told = [3, 14, 15, 9, 26, 5]
    given = session(VAD)
    given["audio"]["input"]["format"]["rate"] = 16000
    audio = base64.b64encode(pcm(np.concatenate([silence(0.4), speak(told)]))).decode()
    codes: list[int] = []

    async def run(url: str, stop: Callable[[], object], restart: Callable[[], object]) -> list[str]:
        texts: list[str] = []

        def again(event: ReconnectingEvent) -> None:
            codes.append(event.close_code)
            restart()

        async with (
            openai.AsyncOpenAI(api_key="any", base_url=url + "/v1") as client,
            client.realtime.connect(
                extra_query={"intent": "transcription"}, on_reconnecting=again
            ) as connection,
        ):
            async for event in connection:
                if event.type == "session.created":
                    await connection.session.update(session=given)  # type: ignore[arg-type]
                if event.type == "session.updated":
                    await connection.input_audio_buffer.append(audio=audio)
                    if texts:
                        await connection.send({"type": "session.close"})  # type: ignore[typeddict-item]
                if event.type == "input_audio_buffer.speech_started" and not texts:
                    stop()
                if event.type == "conversation.item.input_audio_transcription.completed":
                    texts.append(event.transcript)
        return texts

    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        url, stop = first.enter_context(stoppable(with_scripted()))

        def restart() -> None:
            first.close()
            stack.enter_context(stoppable(with_scripted(), port=int(url.rpartition(":")[2])))

        texts = asyncio.run(asyncio.wait_for(run(url, stop, restart), 60))
    assert texts == [" ".join(f"w{word}" for word in told)] * 2
    assert codes == [1012]


def iter_until_completed(connection: Any) -> Iterator[Any]:
    for event in connection:
        yield event
        if event.type.endswith("completed"):
            return
