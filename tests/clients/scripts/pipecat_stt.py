"""Run with pipecat-ai[openai]: its realtime recogniser in a pipeline hears a recording. Prints the finals, one a line."""

import asyncio
import sys

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.stt import OpenAIRealtimeSTTService

url, path, model = sys.argv[1:]
RATE = 24000


class Ear(FrameProcessor):
    """Keeps what the recogniser says."""

    def __init__(self) -> None:
        super().__init__()
        self.final = asyncio.Event()
        self.interim = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InterimTranscriptionFrame):
            self.interim += 1
        if isinstance(frame, TranscriptionFrame):
            print(frame.text, flush=True)
            self.final.set()
        if isinstance(frame, ErrorFrame):
            print(frame.error, file=sys.stderr)
            sys.exit(1)
        await self.push_frame(frame, direction)


async def main() -> None:
    with open(path, "rb") as file:
        audio = file.read()
    local = model == "gpt-realtime-whisper"  # its own VAD commits; the server has none for it
    heard = OpenAIRealtimeSTTService(
        api_key="any",
        base_url=url.replace("http", "ws") + "/v1/realtime",
        turn_detection=False if local else {"type": "server_vad"},
        settings=OpenAIRealtimeSTTService.Settings(model=model, delay="low" if local else None),
    )
    ear = Ear()
    task = PipelineTask(Pipeline([heard, ear]), params=PipelineParams(audio_in_sample_rate=RATE))

    async def speak() -> None:
        while not heard._session_ready:
            await asyncio.sleep(0.02)
        if local:
            await task.queue_frame(VADUserStartedSpeakingFrame())
        for at in range(0, len(audio), 4800):
            await task.queue_frame(InputAudioRawFrame(audio[at : at + 4800], RATE, 1))
            await asyncio.sleep(0.02)
        if local:
            await task.queue_frame(VADUserStoppedSpeakingFrame())
        await asyncio.wait_for(ear.final.wait(), 30)
        await task.queue_frame(EndFrame())

    await asyncio.gather(PipelineRunner(handle_sigint=False).run(task), speak())
    print(ear.interim, file=sys.stderr)


asyncio.run(main())
