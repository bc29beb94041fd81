"""Latency of OpenAI's dialect, through OpenAI's client, against the native one, in one run.

    python tests/perf/realtime.py [--scripted] [--rounds 3] [--sentences 6] [--sessions 1]

Plays sentences of the fixture as a microphone would, 20 ms at a time, to both dialects of a server in a process of its
own: the same sentence to both at the same time, half a message apart and first one ahead and then the other, so that
whatever slows the machine slows both. Prints, from the moment each word was spoken to its end, when it was first told
for good (delta), and from the end of the last word when the turn was complete. A sentence takes about five seconds.
With --scripted the recogniser costs nothing, so that what is left is the dialects. With --sessions N, so many Realtime
sessions at once, with their word errors.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import openai
import soxr
import websockets

from streaming.types import Samples
from tests.drive import speak
from tests.fakes import Line, lines, pcm, silence, word_errors
from tests.processes import serving

STEP = 0.02
PAUSE = 1.2


@dataclass
class Heard:
    """When words of one sentence were told, in seconds from the start of its audio."""

    words: list[float] = field(default_factory=list)
    completed: float = 0.0
    text: str = ""

    def note(self, text: str, at: float) -> None:
        self.words += [at] * (len(text.split()) - len(self.words))


async def paced(line: Line, rate: int, began: float) -> AsyncIterator[bytes]:
    """The sentence and a pause, as time passes."""
    samples = soxr.resample(line.samples, 16000, rate) if rate != 16000 else line.samples
    audio = pcm(samples) + pcm(silence(PAUSE * rate / 16000))
    size = 2 * round(STEP * rate)
    for number, at in enumerate(range(0, len(audio), size)):
        # A piece exists once its last sample has been spoken.
        await asyncio.sleep(max(0.0, began + (number + 1) * STEP - time.monotonic()))
        yield audio[at : at + size]


async def native(url: str, line: Line, rate: int) -> Heard:
    heard = Heard()
    address = url.replace("http", "ws") + f"/v1/audio/transcriptions/stream?sample_rate={rate}"
    async with websockets.connect(address) as socket:
        await socket.recv()
        began = time.monotonic()

        async def speak() -> None:
            async for piece in paced(line, rate, began):
                await socket.send(piece)
            await socket.send('{"type": "end"}')

        speaking = asyncio.create_task(speak())
        async for text in socket:
            at = time.monotonic() - began
            message = json.loads(text)
            if message["type"] == "partial":
                heard.note(heard.text + " " + message["committed"], at)
            if message["type"] == "final":
                heard.text = f"{heard.text} {message['text']}".strip()
                heard.note(heard.text, at)
                heard.completed = at
        await speaking
    return heard


async def realtime(url: str, line: Line, rate: int) -> Heard:
    heard, told = Heard(), ""
    async with (
        openai.AsyncOpenAI(api_key="any", base_url=url + "/v1") as client,
        client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        given: Any = {
            "format": {"type": "audio/pcm", "rate": rate},
            "transcription": {"model": "toy"},
            "turn_detection": {
                "type": "server_vad",
                "silence_duration_ms": 500,
                "prefix_padding_ms": 320,
            },
        }
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": given}}
        )
        while (await connection.recv()).type != "session.updated":
            pass
        began = time.monotonic()

        async def speak() -> None:
            async for piece in paced(line, rate, began):
                await connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())
            await connection.send({"type": "session.close"})  # type: ignore[typeddict-item]

        speaking = asyncio.create_task(speak())
        async for event in connection:
            at = time.monotonic() - began
            if event.type == "conversation.item.input_audio_transcription.delta":
                told += event.delta or ""
                heard.note(heard.text + " " + told, at)
            if event.type == "conversation.item.input_audio_transcription.completed":
                heard.text, told = f"{heard.text} {event.transcript}".strip(), ""
                heard.completed = at
        await speaking
    return heard


def scripted_sentences(count: int) -> list[Line]:
    """Made audio, of which the scripted recogniser reads the words: 200 ms each, 50 ms apart."""
    found = []
    for number in range(count):
        words = [(number * 7 + at * 5) % 60 for at in range(14)]
        times = tuple((f"w{word}", at / 4, at / 4 + 0.2) for at, word in enumerate(words))
        found.append(Scripted(Path(f"{number}"), "en", " ".join(t[0] for t in times), "", times))
    return found


class Scripted(Line):
    @property
    def samples(self) -> Samples:
        return speak([int(word[0][1:]) for word in self.words])


class Table:
    """Latencies by dialect."""

    def __init__(self) -> None:
        self.deltas: list[float] = []
        self.completed: list[float] = []
        self.errors = 0

    def add(self, line: Line, heard: Heard) -> None:
        self.errors += word_errors(line.text, heard.text)
        self.completed.append(heard.completed - line.words[-1][2])
        if len(heard.words) == len(line.words):  # else which word is which is a guess
            pairs = zip(heard.words, line.words, strict=True)
            self.deltas += [at - word[2] for at, word in pairs]

    def row(self, name: str) -> str:
        def shown(values: list[float]) -> str:
            ordered = sorted(values)
            high = ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]
            return f"{statistics.median(ordered) * 1000:9.0f}{high * 1000:9.0f}"

        return f"{name:34}{shown(self.deltas)}{shown(self.completed)}{self.errors:9d}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scripted", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=6)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--rate", type=int, nargs="+", default=[24000, 16000])
    given = parser.parse_args()
    spoken = (
        scripted_sentences(given.sentences) if given.scripted else list(lines()[: given.sentences])
    )
    head = (
        f"{'':34}{'delta':>18}{'completed':>18}{'word':>9}\n{'ms':34}"
        + f"{'P50':>9}{'P95':>9}" * 2
        + f"{'errors':>9}"
    )
    with serving("--log-level", "warning", scripted=given.scripted) as server:
        if given.sessions > 1:
            asyncio.run(together(server.url, given.sessions))  # warms up
            table = asyncio.run(together(server.url, given.sessions))
            print(f"{head}\n{table.row(f'{given.sessions} Realtime sessions at once')}")
            return
        tables = asyncio.run(in_pairs(server.url, spoken, given.rounds, given.rate))
    print(head)
    for name, table in tables.items():
        print(table.row(name))
    for rate in given.rate:
        ours, theirs = (tables[f"{way}, {rate} Hz"] for way in WAYS)
        delta = statistics.median(theirs.deltas) - statistics.median(ours.deltas)
        whole = statistics.median(theirs.completed) - statistics.median(ours.completed)
        print(
            f"difference at {rate} Hz, P50: delta {delta * 1000:+.1f} ms, completed {whole * 1000:+.1f} ms"
        )


async def in_pairs(url: str, spoken: list[Line], rounds: int, rates: list[int]) -> dict[str, Table]:
    """Every sentence to both dialects, `rounds` times."""
    tables = {f"{name}, {rate} Hz": Table() for rate in rates for name in WAYS}

    async def later(number: int, way: Way, line: Line, rate: int) -> Heard:
        await asyncio.sleep(number * STEP / 2)
        return await way(url, line, rate)

    total, done = rounds * len(spoken) * len(rates), 0
    for number in range(rounds + 1):
        for line in spoken if number else spoken[:1]:  # the first round warms up
            for rate in rates if number else rates[:1]:
                order = list(WAYS.items())[:: 1 if number % 2 else -1]
                heard = await asyncio.gather(
                    *(later(at, way, line, rate) for at, (_, way) in enumerate(order))
                )
                if number == 0:
                    continue
                for (name, _), each in zip(order, heard, strict=True):
                    tables[f"{name}, {rate} Hz"].add(line, each)
                done += 1
                print(f"\r{done} of {total} pairs ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return tables


async def together(url: str, sessions: int) -> Table:
    """Many sessions at once."""
    table = Table()
    chosen = [lines()[number % 24] for number in range(sessions)]
    for line, heard in zip(
        chosen,
        await asyncio.gather(*(realtime(url, line, 24000) for line in chosen)),
        strict=True,
    ):
        table.add(line, heard)
    return table


Way = Callable[[str, Line, int], Coroutine[Any, Any, Heard]]
WAYS: dict[str, Way] = {"native": native, "Realtime, openai SDK": realtime}


if __name__ == "__main__":
    main()
