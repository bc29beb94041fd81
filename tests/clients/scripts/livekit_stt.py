"""Run with livekit-plugins-openai: its realtime recogniser hears a recording. Prints the finals, one a line."""

import asyncio
import sys

from livekit import rtc
from livekit.agents import stt, utils
from livekit.plugins import openai

url, path, model = sys.argv[1:]


async def main() -> None:
    with open(path, "rb") as file:
        audio = file.read()
    async with utils.http_context.open():
        heard = openai.STT(
            model=model,
            use_realtime=True,
            base_url=url + "/v1",
            api_key="any",
        )
        stream = heard.stream()

        async def speak() -> None:
            for at in range(0, len(audio), 4800):
                piece = audio[at : at + 4800]
                stream.push_frame(
                    rtc.AudioFrame(
                        data=piece,
                        sample_rate=24000,
                        num_channels=1,
                        samples_per_channel=len(piece) // 2,
                    )
                )
                await asyncio.sleep(0.02)

        speaking = asyncio.create_task(speak())
        interim = 0
        async for event in stream:
            if event.type == stt.SpeechEventType.INTERIM_TRANSCRIPT:
                interim += 1
            if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                print(event.alternatives[0].text)
                break
        print(interim, file=sys.stderr)
        await speaking
        await stream.aclose()
        await heard.aclose()


asyncio.run(main())
