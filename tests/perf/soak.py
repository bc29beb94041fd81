"""Half an hour at half load: does anything grow?

    python tests/perf/soak.py [--minutes 30] [--streams 12] [--every 10] [--shape native]

Live sessions of a minute follow one another on the native WebSocket, a sentence each on OpenAI's, through OpenAI's
client; a recording of 80 s is transcribed now and then. Every few seconds the memory, descriptors and threads of the
server and of its runner are read, and `/health` is asked twice a second. After a warm-up of a fifth of the time, the
slope of each is the Theil-Sen estimate (median of the slopes between all pairs, Sen 1968) with its 95 % interval.
Twelve streams keep two cores, which also run the clients, at about two thirds of what they can do.
Prints a table. Ends with 1 if memory grows by more than 2 % an hour for certain or by more than 5 % in the middle of the
interval, if descriptors or threads grow for certain, if the P99 of `/health` reaches 50 ms, if a session failed, or if
one on the native WebSocket misheard more than a fifth of its words and two more.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx2

from tests.fakes import lines, word_count, word_errors
from tests.perf.chaos import MISHEARD, Outcome, sentences, stream
from tests.perf.realtime import realtime
from tests.perf.streaming import cpu_seconds
from tests.processes import Running, children, command, descriptors, memory, serving, threads

SESSION = 60.0
"""Seconds of a native session."""
REST = 15.0
"""Seconds between two recordings."""
SLOW = 0.05
"""Seconds that `/health` may take, P99."""
GROWTH, LIKELY = 0.02, 0.05
"""Of its memory that a process may grow by, an hour: by the lower end of the interval, and by its middle, where a few
readings leave the lower end anywhere."""
SLIPS = 2
"""Words misheard that a session may have beyond its share: the last ones are a sentence long."""


@dataclass(frozen=True)
class Slope:
    """Of values over time, an hour."""

    middle: float
    low: float
    high: float
    """Ends of the 95 % interval."""


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Theil-Sen over (seconds, value)."""
    slopes = sorted(
        3600 * (two - one) / (later - before)
        for at, (before, one) in enumerate(points)
        for later, two in points[at + 1 :]
        if later > before
    )
    if not slopes:
        return Slope(0.0, 0.0, 0.0)
    n, count = len(points), len(slopes)
    spread = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((count - spread) / 2))
    high = min(count - 1, math.ceil((count + spread) / 2))
    return Slope(statistics.median(slopes), slopes[low], slopes[high])


def grows(found: Slope, size: float) -> bool:
    """Memory of this size does."""
    return found.low > GROWTH * size or found.middle > LIKELY * size


@dataclass
class Figures:
    """What was read of one process, `(seconds, value)` by name."""

    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def read(self, pid: int, at: float) -> None:
        rss, pss = memory(pid)
        if not rss:
            return  # it is gone
        values = {"RSS, MiB": rss, "PSS, MiB": pss}
        values |= {"descriptors": descriptors(pid), "threads": threads(pid)}
        for name, value in values.items():
            self.series.setdefault(name, []).append((at, value))


@dataclass
class Soak:
    """A run."""

    processes: dict[str, Figures] = field(
        default_factory=lambda: {"front": Figures(), "runner": Figures()}
    )
    health: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sessions: int = 0
    recordings: int = 0
    words: int = 0
    """Spoken in native sessions."""
    misheard: int = 0
    """Of them, and words too many."""
    runners: set[int] = field(default_factory=set)
    warm: float = 0.0
    cpu: float = 0.0
    """Cores that the server used, of all."""

    def hear(self, name: str, spoken: str, heard: str) -> None:
        """What became of a session's words."""
        words, misheard = word_count(spoken), word_errors(spoken, heard)
        self.words += words
        self.misheard += misheard
        if misheard > MISHEARD * words + SLIPS:
            self.faults.append(f"{name}: {misheard} of {words} words misheard")

    def report(self) -> str:
        """The table; faults are noted on the way."""
        rows = ["| | | first | last | least | most | slope an hour | 95 % |", "|" + " --- |" * 8]
        for process, figures in self.processes.items():
            for name, series in figures.series.items():
                points = [point for point in series if point[0] >= self.warm]
                if len(points) < 3:
                    continue
                values = [value for _, value in points]
                found = slope(points)
                size = statistics.median(values)
                if grows(found, size) if name.endswith("MiB") else found.low > 0:
                    self.faults.append(
                        f"{name} of the {process} grow by {found.middle:.1f} an hour"
                    )
                rows.append(
                    f"| {process} | {name} | {values[0]:.1f} | {values[-1]:.1f} | {min(values):.1f} | {max(values):.1f}"
                    f" | {found.middle:+.2f} | {found.low:+.2f} … {found.high:+.2f} |"
                )
        ordered = sorted(self.health)
        half, most = (
            ordered[len(ordered) // 2],
            ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        )
        if most >= SLOW:
            self.faults.append(f"P99 of /health is {1000 * most:.0f} ms")
        if len(self.runners) > 1:
            self.faults.append(f"{len(self.runners) - 1} runners died")
        rows += [
            "",
            f"{self.sessions} sessions, {self.recordings} recordings; {self.misheard} of {self.words} words of the native"
            f" sessions misheard; the server used {100 * self.cpu:.0f} % of"
            f" {os.cpu_count()} cores. `/health` P50 {1000 * half:.1f} ms, P99 {1000 * most:.1f} ms,"
            f" worst {1000 * ordered[-1]:.0f} ms of {len(ordered)}.",
        ]
        return "\n".join(rows)


async def native(url: str, number: int, until: float, soak: Soak) -> None:
    """Sessions, one after another."""
    while time.monotonic() < until:
        seconds = min(SESSION, max(5.0, until - time.monotonic()))
        speech = await asyncio.to_thread(sentences, number, seconds)
        outcome = Outcome(f"native session {number}")
        await stream(url, speech, outcome, time.monotonic())
        soak.faults += outcome.faults
        soak.hear(outcome.name, speech.text, outcome.heard[0])
        soak.sessions += 1
        number += 1000


async def openai(url: str, number: int, until: float, soak: Soak) -> None:
    """The same in OpenAI's dialect, a sentence each."""
    while time.monotonic() < until:
        heard = await realtime(url, lines()[number % 24], 24000)
        if not heard.text:
            soak.faults.append(f"Realtime session {number} heard nothing")
        soak.sessions += 1
        number += 7


async def record(url: str, until: float, soak: Soak) -> None:
    """A recording now and then."""
    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:
        body = lines()[24].path.read_bytes()
        while time.monotonic() < until:
            answer = await client.post("/v1/audio/transcriptions", files={"file": ("a.flac", body)})
            if answer.status_code != 200:
                soak.faults.append(f"a recording: {answer.status_code} {answer.text[:200]}")
            soak.recordings += 1
            await asyncio.sleep(REST)


async def ask(url: str, soak: Soak) -> None:
    """`/health`, twice a second."""
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            began = time.monotonic()
            (await client.get("/health")).raise_for_status()
            soak.health.append(time.monotonic() - began)
            await asyncio.sleep(0.5)


async def read(pid: int, every: float, start: float, soak: Soak) -> None:
    """Of the processes, every few seconds."""
    while True:
        at = time.monotonic() - start
        soak.processes["front"].read(pid, at)
        for child in children(pid):
            if "streaming.runner" in command(child):
                soak.runners.add(child)
                soak.processes["runner"].read(child, at)
        await asyncio.sleep(every)


async def listen(server: Running, given: argparse.Namespace) -> Soak:
    """The run."""
    soak = Soak(warm=60 * given.minutes / 5)
    start = time.monotonic()
    until = start + 60 * given.minutes
    around = [
        asyncio.create_task(ask(server.url, soak)),
        asyncio.create_task(read(server.pid, given.every, start, soak)),
    ]
    before = cpu_seconds(server.pid)
    work = asyncio.gather(
        *(
            (openai if number % 4 == 3 else native)(server.url, number, until, soak)
            for number in range(given.streams)
        ),
        record(server.url, until, soak),
    )
    await asyncio.wait([work, *around], return_when=asyncio.FIRST_COMPLETED)
    used = cpu_seconds(server.pid) - before
    soak.cpu = used / (time.monotonic() - start) / (os.cpu_count() or 1)
    for task in (work, *around):
        if task.done():
            task.result()  # raises
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return soak


def main() -> int:
    """Run, print; 1 if anything grew or failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two readings")
    parser.add_argument("--shape", default="native")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="for the server")
    given = parser.parse_args()
    with serving("--log-level", "warning", *given.serve, shape=given.shape) as server:
        soak = asyncio.run(listen(server, given))
        print(soak.report())
    for fault in soak.faults:
        print(f"FAULT {fault}")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
