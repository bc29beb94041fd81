"""What it costs that every model lives in a process of its own.

    python tests/perf/runners.py [--shape native] [--rounds 5]

Two engines in this process, one with the model beside it and one with the model in a process of its own, take turns, so
that whatever else the machine does falls on both. Prints, for each: the time from a commit after a sentence, of which
nothing was decoded ahead, to its final; the bare decode of that window; how many seconds of the recording of 80 s are
transcribed in a second; and how long a model takes to load and to go, and the memory that is back then.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from streaming.backends import faster_whisper, loaders
from streaming.backends.base import Decoding, Window
from streaming.events import Final
from streaming.local import LocalEngine, Plan
from streaming.models import Catalogue
from streaming.session import FLOORS
from streaming.types import RATE, Device, Options, Recording
from streaming.vad.silero import Silero
from tests import toy
from tests.fakes import lines
from tests.perf.footprint import family, resident

FILE = lines()[24]
OPTIONS = Options(language="en", endpointing="client", partials=False)


def engine(shape: str, runners: bool) -> LocalEngine:
    """One that has the model in here, or beside."""
    catalogue = Catalogue(
        loaders(), default="toy", paths={"toy": Path(toy.build(shape))}, offline=True
    )
    plan = Plan(Device(workers=2, threads=1), runners=runners)
    return LocalEngine(catalogue, loaders(), Silero, plan)


async def final(engine: LocalEngine, number: int) -> float:
    """Milliseconds from a commit to its final; nothing was decoded before."""
    samples = lines()[number].samples[: 4 * RATE]
    stream = await engine.open_stream(OPTIONS)
    try:
        await stream.send(samples)
        while stream.lag > 0.1:
            await asyncio.sleep(0.005)
        began = time.perf_counter()
        await stream.commit("now")
        async for event in stream:
            if isinstance(event, Final):
                return 1000 * (time.perf_counter() - began)
    finally:
        await stream.aclose()
    raise AssertionError("no final")


def bare(shape: str) -> Callable[[int], float]:
    """Milliseconds of the decode alone of the window that `final` of a sentence waits for."""
    model = faster_whisper.LOADER.load(toy.build(shape), Device(workers=2, threads=1))
    decoding = Decoding(language="en", beam=1, floor=FLOORS["auto"])

    def decode(number: int) -> float:
        window = Window(lines()[number].samples[: 4 * RATE], decoding)
        began = time.perf_counter()
        model.decode([window])
        return 1000 * (time.perf_counter() - began)

    return decode


async def file(engine: LocalEngine) -> float:
    """Seconds of audio a second."""
    began = time.perf_counter()
    async for _ in engine.transcribe(Recording(FILE.path), Options(language="en")):
        pass
    return len(FILE.samples) / RATE / (time.perf_counter() - began)


async def measure(shape: str, rounds: int) -> None:
    """Take turns, print."""
    here, there = engine(shape, runners=False), engine(shape, runners=True)
    finals: tuple[list[float], list[float]] = ([], [])
    decode, decodes = bare(shape), list[float]()
    files: tuple[list[float], list[float]] = ([], [])
    await residence(there)
    for each in (here, there):
        await each.load("toy")
        await final(each, 0)
        await file(each)
    decode(0)
    for turn in range(rounds):
        for number in range(12):
            for which in (0, 1) if (turn + number) % 2 else (1, 0):
                finals[which].append(await final((here, there)[which], number))
            decodes.append(decode(number))
        for which in (0, 1) if turn % 2 else (1, 0):
            files[which].append(await file((here, there)[which]))
    more = statistics.median(b - a for a, b in zip(*finals, strict=True))
    shares = [
        statistics.median(a / b for a, b in zip(times, decodes, strict=True)) for times in finals
    ]
    print(f"shape {shape}, {12 * rounds} finals and {rounds} files each\n")
    print("| model | commit → final P50 | P95 | recording, × real time |")
    print("|---|--:|--:|--:|")
    for name, times, speeds in zip(("in the server", "in a process"), finals, files, strict=True):
        times.sort()
        print(
            f"| {name} | {statistics.median(times):.1f} ms | {times[int(0.95 * len(times))]:.1f} ms"
            f" | {statistics.median(speeds):.1f} |"
        )
    print(
        f"| the decode alone | {statistics.median(decodes):.1f} ms | {sorted(decodes)[int(0.95 * len(decodes))]:.1f} ms | |"
    )
    print(f"\ncommit → final: × {shares[0]:.2f} and × {shares[1]:.2f} of the decode alone")
    ratio = statistics.median(b / a for a, b in zip(*files, strict=True))
    print(f"commit → final: {more:+.1f} ms, pairwise median; recordings: × {ratio:.3f}")
    await here.aclose()
    await there.aclose()


async def residence(engine: LocalEngine) -> None:
    """What coming and going cost, before anything else was in memory."""
    await file(engine)  # what decodes containers and hears speech stays
    await engine.unload("toy")
    before = resident(os.getpid())
    began = time.perf_counter()
    info = await engine.load("toy")
    loaded = time.perf_counter() - began
    await file(engine)
    inside = resident(os.getpid())
    began = time.perf_counter()
    await engine.unload("toy")
    gone = 1000 * (time.perf_counter() - began)
    assert info.pid not in family(os.getpid())
    print(
        f"loaded in {loaded:.2f} s, unloaded in {gone:.0f} ms; memory of all processes {before:.0f} MB without the model,"
        f" {inside:.0f} MB with it, {resident(os.getpid()):.0f} MB after\n"
    )


def main() -> None:
    """Read the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="native")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    asyncio.run(measure(given.shape, given.rounds))


if __name__ == "__main__":
    main()
