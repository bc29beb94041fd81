"""Run with openai-agents[voice]: its recogniser for streamed audio hears a recording. Prints the turns, one a line."""

import asyncio
import sys

import numpy as np
from agents import set_tracing_disabled
from agents.voice import OpenAISTTModel, StreamedAudioInput, STTModelSettings
from openai import AsyncOpenAI

url, path, kind = sys.argv[1:]


async def main() -> None:
    set_tracing_disabled(True)
    with open(path, "rb") as file:
        audio = np.frombuffer(file.read(), np.int16)
    client = AsyncOpenAI(
        api_key="any",
        base_url=url + "/v1",
        websocket_base_url=url.replace("http", "ws") + "/v1",
    )
    heard = StreamedAudioInput()
    # Its own default is semantic_vad.
    turns = None if kind == "default" else {"type": kind}
    settings = STTModelSettings(turn_detection=turns)
    model = OpenAISTTModel("gpt-4o-transcribe", client)
    session = await model.create_session(heard, settings, False, False)

    async def speak() -> None:
        for at in range(0, len(audio), 2400):
            await heard.add_audio(audio[at : at + 2400])
            await asyncio.sleep(0.02)

    speaking = asyncio.create_task(speak())
    async for text in session.transcribe_turns():
        print(text)
        break
    await speaking
    await session.close()


asyncio.run(main())
