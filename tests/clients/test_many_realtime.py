"""Many Realtime sessions at the same time: every one gets its own words, all of them, once."""

import asyncio
from typing import Any

import openai
import pytest

from tests.clients.test_openai_realtime import VAD, pieces, session
from tests.fakes import lines, silence, word_count, word_errors
from tests.serving import running, with_toy


@pytest.mark.slow
@pytest.mark.parametrize("turn_detection", [VAD, None], ids=["server_vad", "manual"])
def test_32_sessions_lose_and_double_no_word(turn_detection: dict[str, Any] | None) -> None:
    spoken = [lines()[number % 24] for number in range(32)]

    async def hear(client: openai.AsyncOpenAI, number: int) -> str:
        deltas: dict[str, str] = {}
        texts: list[str] = []
        query = {"intent": "transcription"}
        async with client.realtime.connect(extra_query=query) as connection:
            await connection.session.update(session=session(turn_detection))  # type: ignore[arg-type]

            async def speak() -> None:
                for samples in (spoken[number].samples, silence(0.6)):
                    for piece in pieces(samples, 100):
                        await connection.input_audio_buffer.append(audio=piece)
                await connection.send({"type": "session.close"})  # type: ignore[typeddict-item]

            speaking = asyncio.create_task(speak())
            async for event in connection:
                if event.type == "conversation.item.input_audio_transcription.delta":
                    deltas[event.item_id] = deltas.get(event.item_id, "") + (event.delta or "")
                if event.type == "conversation.item.input_audio_transcription.completed":
                    assert deltas.pop(event.item_id, "") == event.transcript
                    texts.append(event.transcript)
            await speaking
        assert not deltas, "an item was begun and not completed"
        return " ".join(texts)

    async def run(url: str) -> list[str]:
        async with openai.AsyncOpenAI(api_key="any", base_url=url + "/v1") as client:
            return await asyncio.gather(*(hear(client, number) for number in range(32)))

    with running(with_toy()) as url:
        texts = asyncio.run(asyncio.wait_for(run(url), 300))
    errors = sum(word_errors(line.text, text) for line, text in zip(spoken, texts, strict=True))
    assert errors <= 9, f"of {sum(word_count(line.text) for line in spoken)} words"
    for line, text in zip(spoken, texts, strict=True):
        assert abs(word_count(line.text) - word_count(text)) <= 2, (line.text, text)
