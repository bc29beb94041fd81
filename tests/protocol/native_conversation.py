"""Records the conversation that opens `docs/protocol.md`: `python -m tests.protocol.native_conversation`."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import websockets

from tests.fakes import pcm, silence, speech
from tests.serving import running, with_toy

PATH = "/v1/audio/transcriptions/stream"
AUDIO = pcm(np.concatenate([silence(0.4), speech("006-en.flac"), silence(1.0)]))
PIECE = 3200
START = {"type": "start", "model": "toy", "language": "en"}


async def record(url: str, pace: float) -> list[str]:
    """Lines of what was said: `>` by the client, `<` by the server. `pace`: seconds between pieces of 100 ms."""
    said = []
    async with websockets.connect(url.replace("http", "ws") + PATH) as socket:

        async def listen() -> None:
            async for message in socket:
                said.append(f"< {message!s}")
                if json.loads(message)["type"] == "marker":
                    said.append('> {"type": "end"}')
                    await socket.send('{"type": "end"}')

        listening = asyncio.create_task(listen())
        said.append("> " + json.dumps(START))
        await socket.send(json.dumps(START))
        said.append(f"> ({PIECE} bytes of samples, {len(AUDIO) // PIECE + 1} times, 100 ms apart)")
        for at in range(0, len(AUDIO), PIECE):
            await socket.send(AUDIO[at : at + PIECE])
            await asyncio.sleep(pace)
        said.append('> {"type": "commit", "marker": "one"}')
        await socket.send('{"type": "commit", "marker": "one"}')
        await listening
        said.append(f"< (close {socket.close_code})")
    return said


if __name__ == "__main__":
    with running(with_toy()) as url:
        asyncio.run(record(url, 0.0))  # the model loads
        print("\n".join(asyncio.run(record(url, 0.1))))
