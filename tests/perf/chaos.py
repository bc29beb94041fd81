"""Live streams and recordings while everything around them breaks: is every word told, once?

    python tests/perf/chaos.py [--minutes 5] [--streams 16] [--calls 4] [--files 4] [--scripted] [--seed 0]

Streams speak in real time through the Python client and a wire that resets connections, lets them hang and lets the
client read nothing for a while; so do calls, sessions of OpenAI's dialect, which nothing resumes, on a wire that holds;
recordings are transcribed over and over; the server's runner processes are killed.
What is heard is compared with what is heard when nothing breaks: of the toy Whisper in a first, undisturbed run of the
same length, word by word; of the scripted recogniser (--scripted) with what was spoken, to the letter. The toy hears a
word now and then otherwise, by the moment of a partial: how many, a second undisturbed run says. Prints a table.
Ends with 1 if a word was lost or doubled, unless the reference was wrong there, if words changed at more places than two
undisturbed runs differ at, an utterance has no final or two, finals come out of order, a committed word was taken back, or
a stream failed, also in an undisturbed run.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import os
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx2
import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from open_speech_client import (
    AsyncStream,
    ConnectionLost,
    Final,
    OpenSpeechError,
    Overloaded,
    Partial,
    Ready,
    Unreachable,
    async_connect,
)
from streaming.types import RATE, Samples
from tests.drive import speak
from tests.fakes import lines, noise, pcm, silence, wav, word_count, word_errors
from tests.processes import children, command, serving
from tests.words import Difference, Stretch, difference, stretches

MESSAGE = RATE * 40 // 1000
"""Samples a message."""
PATIENCE = 180.0
"""Seconds after the last word in which everything must be told."""
MISHEARD = 0.2
"""Of the words that are spoken, at most, where nothing breaks: whoever hears more wrong is nothing to compare with."""
KINDS = ("stream", "call", "file")


@dataclass(frozen=True)
class Plan:
    """What is done."""

    minutes: float = 5.0
    streams: int = 16
    calls: int = 4
    files: int = 4
    scripted: bool = False
    seed: int = 0
    kill_every: float = 8.0
    """Seconds between two killed runners, on average."""
    break_every: float = 2.0
    """Seconds between two things done to some connection, on average."""
    shape: str = "native"
    serve: tuple[str, ...] = ()
    """More flags for the server."""


@dataclass
class Outcome:
    """Of one stream, or of all transcriptions of one recording."""

    name: str
    """Its kind and a number."""
    spoken: str = ""
    expected: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    late: float = 0.0
    """Seconds from the last audio to the end."""
    connections: int = 0
    ends: list[float] = field(default_factory=list)
    """Of a stream's or a call's utterances: the detector's alone, whatever words the recogniser finds."""

    @property
    def difference(self) -> Difference:
        pairs = zip(self.expected, self.heard, strict=True)
        return sum(
            (difference(expected, heard, self.spoken) for expected, heard in pairs), Difference()
        )

    @property
    def places(self) -> list[Stretch]:
        """Where words differ."""
        pairs = zip(self.expected, self.heard, strict=True)
        return [each for expected, heard in pairs for each in stretches(expected, heard)]

    @property
    def equal(self) -> int:
        """Transcripts that are the same to the letter."""
        return sum(map(str.__eq__, self.expected, self.heard))


@dataclass(frozen=True)
class Tally:
    """Of all outcomes of one kind."""

    transcripts: int
    spoken: int
    """Words."""
    words: int
    """Expected."""
    difference: Difference
    places: int
    """Where words differ."""
    equal: int
    """Transcripts."""
    misheard: int
    """Words, against what was spoken."""


def changes(one: Tally, two: Tally) -> int:
    """Places at which words may change in `two` if it is no worse than `one`: of as many, the upper end of the 95 %
    interval of what `one` counts. Three where it counts none (the rule of three: Hanley and Lippman-Hand 1983). Places, for
    a recogniser that slips slips by several words."""
    found = one.places
    return math.floor((found + 2 * math.sqrt(found) + 3) * two.words / max(1, one.words))


@dataclass
class Report:
    """What came of a run."""

    plan: Plan
    calm: Report | None = None
    """What came of the same without any fault, compared with the same reference; None where what is said is known."""
    done: Counter[str] = field(default_factory=Counter)
    """Faults, by kind."""
    outcomes: list[Outcome] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    """Seconds that `/health` took, each time it was asked."""
    died: bool = False
    """The server itself."""

    @property
    def total(self) -> Difference:
        return sum((each.difference for each in self.outcomes), Difference())

    def tally(self, kind: str) -> Tally:
        some = [each for each in self.outcomes if each.name.startswith(kind)]
        return Tally(
            sum(len(each.heard) for each in some),
            sum(word_count(each.spoken) * len(each.heard) for each in some),
            sum(word_count(text) for each in some for text in each.expected),
            sum((each.difference for each in some), Difference()),
            sum(len(each.places) for each in some),
            sum(each.equal for each in some),
            sum(word_errors(each.spoken, text) for each in some for text in each.heard),
        )

    @property
    def faults(self) -> list[str]:
        """Why the run failed; empty if it did not."""
        found = [f"{each.name}: {fault}" for each in self.outcomes for fault in each.faults]
        if self.died:
            found.append("the server ended")
        if self.total.lost or self.total.doubled:
            found.append(f"{self.total.lost} words lost, {self.total.doubled} doubled")
            found += [
                f"{each.name} {place}"
                for each in self.outcomes
                if each.difference.lost or each.difference.doubled
                for place in each.places
            ]
        if self.plan.scripted:
            found += [
                f"{each.name}: not equal to the letter"
                for each in self.outcomes
                if each.equal < len(each.expected)
            ]
        if self.calm is not None:
            found += self._against(self.calm)
        return found

    def _against(self, calm: Report) -> list[str]:
        """What is worse than where nothing broke, or was bad there already."""
        found = [
            f"undisturbed, {each.name}: {fault}" for each in calm.outcomes for fault in each.faults
        ]
        for kind in KINDS:
            one, two = calm.tally(kind), self.tally(kind)
            if two.places > changes(one, two):
                found.append(
                    f"{kind}s: words changed at {two.places} places of {two.words} words; undisturbed"
                    f" at {one.places} of {one.words}"
                )
            if one.misheard > MISHEARD * one.spoken:
                found.append(f"undisturbed, {kind}s: {one.misheard} of {one.spoken} words misheard")
        return found

    def table(self) -> str:
        """For people, in Markdown."""
        kinds = ("runner killed", "connection reset", "connection hangs", "reader stalled")
        rows = [
            "| " + " | ".join(("fault", *kinds)) + " |",
            "| --- |" + " --- |" * len(kinds),
            "| times | " + " | ".join(str(self.done[kind]) for kind in kinds) + " |",
            "",
            "| | transcripts | words | lost | doubled | changed, places | misheard | equal to the letter | connections | last word → end, worst |",
            "|" + " --- |" * 10,
        ]
        for kind in KINDS:
            rows.append(self._row(kind, ""))
            if self.calm is not None:
                rows.append(self.calm._row(kind, ", undisturbed"))
        ordered = sorted(self.health) or [0.0]
        rows += [
            "",
            f"`/health` P50 {1000 * ordered[len(ordered) // 2]:.0f} ms,"
            f" P99 {1000 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]:.0f} ms,"
            f" worst {1000 * ordered[-1]:.0f} ms of {len(ordered)}.",
        ]
        return "\n".join(rows)

    def _row(self, kind: str, what: str) -> str:
        some = [each for each in self.outcomes if each.name.startswith(kind)]
        tally = self.tally(kind)
        found = tally.difference
        late = f"{max((each.late for each in some), default=0):.1f} s" if kind != "file" else ""
        shown = sum(each.connections for each in some) if kind == "stream" else ""
        return (
            f"| {len(some)} {kind}s{what} | {tally.transcripts} | {tally.words} | {found.lost} | {found.doubled}"
            f" | {found.changed}, {tally.places} | {tally.misheard} | {tally.equal} | {shown} | {late} |"
        )


# What is spoken.


@dataclass(frozen=True)
class Speech:
    """What one stream says, or a recording holds."""

    samples: Samples
    text: str
    language: str = "en"


def scripted(seed: int, seconds: float) -> Speech:
    """Words with short and long pauses, and now and then half a minute without any that ends an utterance."""
    chance = random.Random(seed)
    parts: list[int | float] = [chance.uniform(0.3, 1.0)]
    length = 0.0
    while length < seconds:
        count = 130 if chance.random() < 0.05 else chance.randint(2, 14)
        for at in range(count):
            # A breath: where an utterance is too long it is split in one.
            more: list[int | float] = [chance.randrange(60)] + ([0.15] if at % 8 == 7 else [])
            parts += more
        parts.append(chance.uniform(0.6, 2.5))
        length += count * 0.27 + 1.5
    text = " ".join(f"w{each}" for each in parts if isinstance(each, int))
    return Speech(speak(parts), text)


def sentences(seed: int, seconds: float) -> Speech:
    """Sentences of the fixture in one language, at different levels, with pauses and a little noise."""
    chance = random.Random(seed)
    language = ("en", "en", "de", "fr", "es")[seed % 5]
    pool = [line for line in lines()[:24] if line.language == language]
    parts = [silence(chance.uniform(0.3, 2.0))]
    said = []
    while sum(map(len, parts)) < seconds * RATE:
        line = chance.choice(pool)
        said.append(line.text)
        parts.append(line.samples * np.float32(chance.uniform(0.4, 1.0)))
        parts.append(silence(chance.uniform(0.9, 2.5)))
    samples = np.concatenate(parts)
    heard = samples + noise(len(samples) / RATE + 1, 0.001, seed)[: len(samples)]
    return Speech(heard, " ".join(said), language)


# What is done to them.


class Wire:
    """A proxy whose connections can be broken one by one."""

    def __init__(self, target: str) -> None:
        found = urlsplit(target)
        self._target = found.hostname, found.port
        self._lines: list[_Line] = []
        self.connections: Counter[str] = Counter()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inward, outward = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(writer, outward)
        self._lines.append(line)
        try:
            with suppress(asyncio.CancelledError):  # the wire is taken down
                await asyncio.gather(
                    line.carry(reader, outward, line.up), line.carry(inward, writer, line.down)
                )
        finally:
            self._lines.remove(line)
            writer.transport.abort()
            outward.transport.abort()

    async def hurt(self, kind: str, chance: random.Random) -> bool:
        """Do it to some connection; False where there is none that it can be done to."""
        lines = [line for line in self._lines if line.up.is_set() and line.down.is_set()]
        if not lines:
            return False
        line = chance.choice(lines)
        match kind:
            case "connection reset":
                line.reset()
            case "connection hangs":  # neither side learns of it; then it breaks, or goes on
                line.up.clear()
                line.down.clear()
                await asyncio.sleep(chance.uniform(0.5, 12.0))
                if chance.random() < 0.5:
                    line.reset()
                line.up.set()
                line.down.set()
            case "reader stalled":
                line.down.clear()
                await asyncio.sleep(chance.uniform(1.0, 20.0))
                line.down.set()
        return True


class _Line:
    """One connection through the wire."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._ends = near, far
        self.up, self.down = asyncio.Event(), asyncio.Event()
        self.up.set()
        self.down.set()

    async def carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await source.read(16384):
                await flows.wait()
                target.write(data)
                await target.drain()
        target.close()

    def reset(self) -> None:
        """RST, both ways."""
        for end in self._ends:
            found = end.get_extra_info("socket")
            if found is not None:
                with suppress(OSError):  # it broke before
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()


@asynccontextmanager
async def wired(target: str) -> AsyncGenerator[Wire, None]:
    """A wire to `target` on a free port."""
    wire = Wire(target)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()


async def kill(pid: int, plan: Plan, report: Report) -> None:
    """Runner processes, one at a time, with SIGKILL."""
    chance = random.Random(plan.seed)
    while True:
        await asyncio.sleep(chance.expovariate(1 / plan.kill_every))
        runners = [each for each in children(pid) if "streaming.runner" in command(each)]
        if runners:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(runners), signal.SIGKILL)
                report.done["runner killed"] += 1


async def hurt(wire: Wire, plan: Plan, report: Report) -> None:
    """Connections, several at a time."""
    chance = random.Random(plan.seed + 1)
    kinds = ("connection reset", "connection hangs", "reader stalled")

    async def one(kind: str) -> None:
        if await wire.hurt(kind, chance):
            report.done[kind] += 1

    async with asyncio.TaskGroup() as tasks:
        while True:
            await asyncio.sleep(chance.expovariate(1 / plan.break_every))
            tasks.create_task(one(chance.choice(kinds)))


# Who speaks.


async def stream(url: str, speech: Speech, outcome: Outcome, start: float) -> None:
    """One paced stream; its text, and what it broke of the protocol's promises."""
    finals: list[Final] = []
    committed: dict[int, str] = {}
    data = pcm(speech.samples)
    session = ""
    ended = 0.0
    try:
        async with AsyncExitStack() as stack:
            client = await reach(stack, url, speech.language)

            async def talk() -> None:
                nonlocal ended
                for at in range(0, len(data), 2 * MESSAGE):
                    due = start + min(at + 2 * MESSAGE, len(data)) / 2 / RATE
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    await client.send(data[at : at + 2 * MESSAGE])
                await client.end()
                ended = time.monotonic()

            talking = asyncio.create_task(talk())
            try:
                until = len(data) / 2 / RATE + PATIENCE
                async with asyncio.timeout(until):
                    async for event in client:
                        if isinstance(event, Ready):
                            outcome.connections += 1
                            if event.session != session:  # an open utterance begins again
                                session = event.session
                                committed.clear()
                        if isinstance(event, Partial | Final):
                            text = event.text if isinstance(event, Final) else event.committed
                            if not text.startswith(committed.get(event.utterance, "")):
                                outcome.faults.append(f"a committed word changed: {text}")
                            committed[event.utterance] = text
                        if isinstance(event, Final):
                            finals.append(event)
                outcome.late = time.monotonic() - ended
                await talking
            finally:
                talking.cancel()
                await asyncio.gather(talking, return_exceptions=True)
    except (OpenSpeechError, TimeoutError) as error:
        outcome.faults.append(f"{type(error).__name__}: {error}")
    outcome.ends = [final.end for final in finals]
    if [final.utterance for final in finals] != list(range(len(finals))):
        outcome.faults.append(f"finals {[final.utterance for final in finals]}")
    if any(one.end > two.start + 1e-6 for one, two in zip(finals, finals[1:], strict=False)):
        outcome.faults.append("finals overlap")
    outcome.heard.append(" ".join(final.text.strip() for final in finals if final.text.strip()))


async def reach(stack: AsyncExitStack, url: str, language: str) -> AsyncStream:
    """A stream that stands: the client comes back by itself once it was there, not before. Who is sent away because the
    server has enough to do comes again when it says."""
    while True:
        try:
            client = async_connect(url, reconnect=60.0, timeout=30.0, language=language)
            return await stack.enter_async_context(client)
        except Overloaded as error:
            await asyncio.sleep(error.retry_after or 1.0)
        except (Unreachable, ConnectionLost):
            pass


async def call(url: str, speech: Speech, outcome: Outcome, start: float) -> None:
    """One paced session of OpenAI's dialect under server VAD."""
    data = pcm(speech.samples)
    deltas: dict[str, str] = {}
    texts: list[str] = []
    ended = 0.0
    given = {
        "format": {"type": "audio/pcm", "rate": RATE},
        "transcription": {"model": "toy", "language": speech.language},
    }
    update = {"type": "transcription", "audio": {"input": given}}
    address = url.replace("http", "ws") + "/v1/realtime?intent=transcription"
    try:
        async with connect(address) as connection:

            async def talk() -> None:
                nonlocal ended
                await connection.send(json.dumps({"type": "session.update", "session": update}))
                for at in range(0, len(data), 2 * MESSAGE):
                    due = start + min(at + 2 * MESSAGE, len(data)) / 2 / RATE
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    audio = base64.b64encode(data[at : at + 2 * MESSAGE]).decode()
                    told = {"type": "input_audio_buffer.append", "audio": audio}
                    await connection.send(json.dumps(told))
                await connection.send('{"type": "session.close"}')
                ended = time.monotonic()

            talking = asyncio.create_task(talk())
            try:
                async with asyncio.timeout(len(data) / 2 / RATE + PATIENCE):
                    async for message in connection:
                        event = json.loads(message)
                        if event["type"].endswith(".delta"):
                            item = event["item_id"]
                            deltas[item] = deltas.get(item, "") + event["delta"]
                        if event["type"].endswith(".speech_stopped"):
                            outcome.ends.append(event["audio_end_ms"] / 1000)
                        if event["type"].endswith(".completed"):
                            texts.append(event["transcript"])
                            if deltas.pop(event["item_id"], "") != event["transcript"]:
                                outcome.faults.append("the deltas do not spell the transcript")
                        if event["type"].endswith((".failed", "error")):
                            outcome.faults.append(message[:300])
                outcome.late = time.monotonic() - ended
                await talking
            finally:
                talking.cancel()
                await asyncio.gather(talking, return_exceptions=True)
            if connection.close_code != 1000:
                outcome.faults.append(f"closed with {connection.close_code}")
    except (OSError, WebSocketException, TimeoutError) as error:
        outcome.faults.append(f"{type(error).__name__}: {error}")
    outcome.connections = 1
    outcome.heard.append(" ".join(text for text in texts if text))


async def transcribe(url: str, speech: Speech, outcome: Outcome, until: float) -> None:
    """One recording, over and over until then."""
    body = wav(speech.samples)
    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:
        while not outcome.heard or time.monotonic() < until:
            answer = await client.post(
                "/v1/audio/transcriptions",
                data={"response_format": "text", "language": speech.language},
                files={"file": ("a.wav", body)},
            )
            if answer.status_code == 200:
                outcome.heard.append(" ".join(answer.text.split()))
            elif answer.status_code in (429, 503):
                await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
            else:
                outcome.faults.append(f"{answer.status_code}: {answer.text[:200]}")
                return


async def ask(url: str, report: Report) -> None:
    """Is it well?"""
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            began = time.monotonic()
            answer = await client.get("/health")
            report.health.append(time.monotonic() - began)
            assert answer.status_code == 200, answer.text
            await asyncio.sleep(0.5)


async def listen(
    plan: Plan,
    url: str,
    pid: int,
    spoken: Sequence[Speech],
    called: Sequence[Speech],
    recorded: Sequence[Speech],
    *,
    disturbed: bool,
    again: bool,
) -> Report:
    """One run; the texts of its outcomes, not yet compared. Recordings are transcribed once, or `again` and again."""
    report = Report(plan)
    start = time.monotonic() + 1.0
    until = start + 60 * plan.minutes
    streams = [Outcome(f"stream {number}") for number in range(len(spoken))]
    files = [Outcome(f"file {number}") for number in range(len(recorded))]
    calls = [Outcome(f"call {number}") for number in range(len(called))]
    report.outcomes = [*streams, *calls, *files]
    async with wired(url) as wire:
        around: list[Coroutine[Any, Any, None]] = [ask(url, report)]
        if disturbed:
            around += [kill(pid, plan, report), hurt(wire, plan, report)]
        tasks = [asyncio.create_task(each) for each in around]
        work = asyncio.gather(
            *(
                stream(wire.url, speech, outcome, start + number / len(spoken))
                for number, (speech, outcome) in enumerate(zip(spoken, streams, strict=True))
            ),
            *(
                call(url, speech, outcome, start + number / len(called))
                for number, (speech, outcome) in enumerate(zip(called, calls, strict=True))
            ),
            *(
                transcribe(url, speech, outcome, until if again else start)
                for speech, outcome in zip(recorded, files, strict=True)
            ),
        )
        try:
            await asyncio.wait([work, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # raises
            await work
        finally:
            for task in [work, *tasks]:
                task.cancel()
            await asyncio.gather(work, *tasks, return_exceptions=True)
    return report


def run(plan: Plan) -> Report:
    """The whole of it."""
    make = scripted if plan.scripted else sentences
    seconds = 60 * plan.minutes
    spoken = [make(plan.seed * 1000 + number, seconds) for number in range(plan.streams)]
    called = [make(plan.seed * 1000 + 700 + number, seconds) for number in range(plan.calls)]
    recorded = [make(plan.seed * 1000 + 500 + number, 60) for number in range(plan.files)]
    flags = ("--log-level", "warning", *plan.serve)
    with serving(*flags, scripted=plan.scripted, shape=plan.shape) as server:

        def once(*, disturbed: bool = False, again: bool = True) -> Report:
            heard = listen(
                plan,
                server.url,
                server.pid,
                spoken,
                called,
                recorded,
                disturbed=disturbed,
                again=again,
            )
            return asyncio.run(heard)

        first = None if plan.scripted else once(again=False)
        calm = None if plan.scripted else once()
        report = once(disturbed=True)
        report.died = server.process.poll() is not None
    return compared(report, [*spoken, *called, *recorded], first, calm)


def compared(
    report: Report, speeches: Sequence[Speech], first: Report | None, calm: Report | None
) -> Report:
    """`report` with what its outcomes should have heard: what `first` did if there is one, else what was spoken. `calm`
    is compared likewise, and bears the faults of `first`."""
    for at, speech in enumerate(speeches):
        text = speech.text
        if first is not None:
            heard = first.outcomes[at].heard
            text = heard[0] if heard else ""  # it failed, and its faults say so
        for each in (report, calm):
            if each is not None:
                outcome = each.outcomes[at]
                outcome.spoken = speech.text
                outcome.expected = [text] * len(outcome.heard)
                known = outcome.ends if first is None else first.outcomes[at].ends
                if outcome.ends != known:
                    lost, many = (
                        Counter(known) - Counter(outcome.ends),
                        Counter(outcome.ends) - Counter(known),
                    )
                    outcome.faults.append(
                        f"{lost.total()} utterances without their final, {many.total()} too many"
                    )
        if first is not None and calm is not None:
            calm.outcomes[at].faults += first.outcomes[at].faults
    report.calm = calm
    return report


def main() -> int:
    """Run, print; 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plan = Plan()
    parser.add_argument("--minutes", type=float, default=plan.minutes)
    parser.add_argument("--streams", type=int, default=plan.streams)
    parser.add_argument("--calls", type=int, default=plan.calls)
    parser.add_argument("--files", type=int, default=plan.files)
    parser.add_argument("--scripted", action="store_true")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--kill-every", type=float, default=plan.kill_every)
    parser.add_argument("--break-every", type=float, default=plan.break_every)
    parser.add_argument("--shape", default=plan.shape)
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="for the server")
    given = vars(parser.parse_args())
    report = run(Plan(**{**given, "serve": tuple(given["serve"])}))
    print(report.table())
    for fault in report.faults:
        print(f"FAULT {fault}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
