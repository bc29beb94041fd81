"""Many Realtime sessions at the same time: every one gets its own words, all of them, once."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import openai
import pytest
import soxr

from streaming.types import Samples
from tests.clients.test_openai_realtime import VAD, session
from tests.drive import speak
from tests.fakes import lines, pcm, silence
from tests.serving import running, with_scripted, with_toy
from tests.words import Difference, difference

SESSIONS = 32
BOTH = pytest.mark.parametrize("turn_detection", [VAD, None], ids=["server_vad", "manual"])


async def hear(url: str, given: dict[str, Any], samples: Samples) -> str:
    """All transcripts of one session that hears `samples` at the rate that `given` says, as fast as it may."""
    rate = given["audio"]["input"]["format"]["rate"]
    audio = pcm(samples if rate == 16000 else soxr.resample(samples, 16000, rate))
    deltas: dict[str, str] = {}
    texts: list[str] = []
    async with (
        openai.AsyncOpenAI(api_key="any", base_url=url + "/v1") as client,
        client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        await connection.session.update(session=given)  # type: ignore[arg-type]

        async def talk() -> None:
            for at in range(0, len(audio), rate // 5):  # 100 ms
                piece = base64.b64encode(audio[at : at + rate // 5]).decode()
                await connection.input_audio_buffer.append(audio=piece)
            await connection.send({"type": "session.close"})  # type: ignore[typeddict-item]

        talking = asyncio.create_task(talk())
        async for event in connection:
            if event.type == "conversation.item.input_audio_transcription.delta":
                deltas[event.item_id] = deltas.get(event.item_id, "") + (event.delta or "")
            if event.type == "conversation.item.input_audio_transcription.completed":
                assert deltas.pop(event.item_id, "") == event.transcript
                texts.append(event.transcript)
        await talking
    assert not deltas, "an item was begun and not completed"
    return " ".join(texts)


def together(url: str, given: dict[str, Any], spoken: Sequence[Samples]) -> list[str]:
    async def run() -> list[str]:
        return await asyncio.gather(*(hear(url, given, samples) for samples in spoken))

    return asyncio.run(asyncio.wait_for(run(), 300))


@BOTH
def test_32_sessions_hear_every_word_once(turn_detection: dict[str, Any] | None) -> None:
    chance = np.random.default_rng(1)
    told: list[list[int]] = [chance.integers(0, 60, 40).tolist() for _ in range(SESSIONS)]
    spoken = []
    for words in told:
        parts: list[int | float] = []
        for at, word in enumerate(words):
            parts += [word, 0.8] if at % 8 == 7 else [word]
        spoken.append(np.concatenate([silence(0.4), speak(parts)]))
    given = session(turn_detection)
    given["audio"]["input"]["format"]["rate"] = 16000  # the words are levels: resampling blurs them
    with running(with_scripted()) as url:
        texts = together(url, given, spoken)
    assert texts == [" ".join(f"w{word}" for word in words) for words in told]


@pytest.mark.slow
@BOTH
def test_32_sessions_lose_and_double_no_word(turn_detection: dict[str, Any] | None) -> None:
    spoken = [
        np.concatenate([lines()[number % 24].samples, silence(0.6)]) for number in range(SESSIONS)
    ]
    given = session(turn_detection)
    with running(with_toy()) as url:
        alone = [together(url, given, [samples])[0] for samples in spoken[:24]]
        texts = together(url, given, spoken)
    found = sum(
        (difference(alone[number % 24], text) for number, text in enumerate(texts)), Difference()
    )
    assert (found.lost, found.doubled) == (0, 0)
    # Which words a partial commits depends on when it was decoded, and so, rarely, how a word is heard.
    assert found.changed <= 4


@pytest.mark.slow
@BOTH
def test_32_sessions_say_what_each_would_say_alone(turn_detection: dict[str, Any] | None) -> None:
    """Without partials nothing depends on the moment of a decode: equal to the letter."""
    spoken = [
        np.concatenate([lines()[number % 24].samples, silence(0.6)]) for number in range(SESSIONS)
    ]
    given = session(turn_detection)
    with running(with_toy(realtime_deltas="late")) as url:
        alone = [together(url, given, [samples])[0] for samples in spoken[:24]]
        texts = together(url, given, spoken)
    assert texts == [alone[number % 24] for number in range(SESSIONS)]
