"""What only time shows: an hour of speech, and minutes of nothing."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

from streaming.backends import loaders
from streaming.events import Event, Final, Partial
from streaming.listener import Listener
from streaming.local import LocalEngine, Plan
from streaming.models import Catalogue
from streaming.segmenter import FRAME, Stopped
from streaming.types import RATE, Device, Options, Samples
from streaming.vad.silero import Silero
from tests import toy
from tests.fakes import lines, noise, silence, word_errors

pytestmark = pytest.mark.slow


def resident() -> float:
    """MiB. What glibc keeps of what was freed is given back first: how much that is depends on the tests before."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def listen(pieces: list[Samples], options: Options) -> tuple[list[Event], list[float]]:
    """All events of a stream that hears `pieces` as fast as it is let, and the memory after each of them."""
    catalogue = Catalogue(loaders(), default="toy", paths={"toy": toy.build()}, offline=True)
    engine = LocalEngine(catalogue, loaders(), Silero, Plan(Device(workers=2, threads=1)))
    stream = await engine.open_stream(options)
    events: list[Event] = []
    memory: list[float] = []

    async def read() -> None:
        async for event in stream:
            events.append(event)

    reading = asyncio.create_task(read())
    try:
        for piece in pieces:
            for at in range(0, len(piece), RATE):
                await stream.send(piece[at : at + RATE])
                while stream.lag > 20.0:
                    await asyncio.sleep(0.05)
            memory.append(resident())
        await stream.end()
        await reading
    finally:
        reading.cancel()
        await stream.aclose()
        await engine.aclose()
    return events, memory


@pytest.mark.parametrize(
    "audio",
    [
        silence(600.0),
        noise(600.0, level=0.003),
        np.concatenate(
            [noise(30.0, level=level, seed=at) for at, level in enumerate([0.0, 0.1] * 10)]
        ),
    ],
    ids=["silence", "noise", "bursts of noise"],
)
def test_ten_minutes_of_nothing_give_no_word(audio: Samples) -> None:
    events, _ = asyncio.run(listen([audio], Options()))
    said = [event for event in events if isinstance(event, Final | Partial)]
    assert [event for event in said if isinstance(event, Final) and event.text.strip()] == []
    assert [event for event in said if isinstance(event, Partial)] == []


def decided(pieces: list[Samples], options: Options) -> list[tuple[int, int]]:
    """Where utterances begin and end by what the detector alone says of the whole recording."""
    listener, detector = Listener(options), Silero()
    state = detector.open()
    found: list[tuple[int, int]] = []

    def judge() -> None:
        frames = listener.frames()
        (likely,) = detector.detect([state], [frames])
        for each in listener.receive_probabilities(frames, likely):
            if isinstance(each, Stopped):
                found.append((each.start, each.end))
        listener.forget()

    for piece in pieces:
        listener.receive_audio(piece)
        judge()
    listener.receive_end()
    judge()
    return found


def test_an_hour_keeps_its_place_and_its_size() -> None:
    line = lines()[24]
    # Whole frames, so that the words of every round are judged alike.
    round_ = np.concatenate([line.samples, silence(2.0)])
    round_ = round_[: len(round_) // FRAME * FRAME]
    rounds = -(-3600 * RATE // len(round_))
    options = Options(language="en", words=True)
    events, memory = asyncio.run(listen([round_] * rounds, options))
    finals = [event for event in events if isinstance(event, Final)]
    assert [(final.start, final.end) for final in finals] == decided([round_] * rounds, options)
    assert len(finals) > 10 * rounds
    for turn in range(rounds):
        # By its middle: the pre-roll may reach into the round before.
        here = [each for each in finals if (each.start + each.end) // 2 // len(round_) == turn]
        text = "".join(final.text for final in here)
        assert word_errors(line.text, text) <= 3
    assert memory[-1] - memory[len(memory) // 4] < 40, "MiB since the first quarter of an hour"
