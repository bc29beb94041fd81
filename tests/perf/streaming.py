"""Live streams against the clock: latency, stability and accuracy at rising load.

    python tests/perf/streaming.py [--shape native] [--streams 1 2 4 8 16 32 64] [--seconds 60] [--window auto]
    python tests/perf/streaming.py --streams 32 --seconds 150 --gap     live against REST on 5,000 words
    python tests/perf/streaming.py --streams 8 --bulk                   finals without and with recordings beside them
    python tests/perf/streaming.py --streams 1 --rounds 10              one stream over a hundred sentences of all languages
    python tests/perf/streaming.py --hour                               one hour through a socket at 10 times real time

Starts a server, then paced clients in processes of their own. Each stream hears sentences of one language of the
fixture with random lead-in, pauses, gain and noise, in messages of 40 ms sent when they would have been spoken. Times
are taken on the clients' side against the true word times:

    first partial    from the onset of speech to the first words shown
    word             from the end of a word to the first message that shows it, in its place
    commit           from the end of a word to the first message that holds it committed
    speech -> final  from the end of the last word of an utterance to its final
    our share        of it: from sending the message that completes the endpoint's silence to the final. The rest is the
                     silence asked for, the detector's hangover after the word, and the length of a message
    commit -> final  from sending a commit after the end of speech to the final (`--commit`)
    erasure          words shown and taken back, a word of the finals

    lost/doubled     utterances, told apart by where the detector alone says that they end, without a final or with two
    shed             partials that were asked for and gave way to newer ones, of all asked for

Word error rates stand beside that of the same audio over REST (`--gap`). `missing/extra` are words that the recogniser
misheard; that none is lost or doubled is exact only with the scripted one: `tests/perf/chaos.py --scripted`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[2]))

import jiwer
import numpy as np

from streaming.listener import Listener
from streaming.segmenter import FRAME, Stopped
from streaming.types import Options
from streaming.vad.silero import Silero
from tests import toy
from tests.fakes import Line, lines, noise, pcm, wav
from tests.perf.footprint import family, resident

RATE = 16000
SHED_AND_DECODED = (
    r'open_speech_partials_dropped_total\{.*reason="busy"',
    r'open_speech_decode_queue_seconds_count\{kind="partial"',
)
MESSAGE = RATE * 40 // 1000
"""Samples a message: what browsers and voice agents send."""


@dataclass(frozen=True)
class Script:
    """What one stream hears: its audio and the true words of each sentence, `(text, start, end)`."""

    seed: int
    language: str
    samples: np.ndarray
    sentences: tuple[tuple[tuple[str, float, float], ...], ...]

    @property
    def text(self) -> str:
        return " ".join(word for sentence in self.sentences for word, _, _ in sentence)


@dataclass
class Heard:
    """What one stream was told, with the times of arrival (CLOCK_MONOTONIC)."""

    script: Script
    began: float = 0.0
    sent: list[float] = field(default_factory=list)
    messages: list[tuple[float, dict]] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    error: str = ""
    refused: str = ""


def compose(seed: int, seconds: float) -> Script:
    """Sentences of one language, `seconds` long or a little longer."""
    chance = random.Random(seed)
    language = ("en", "en", "de", "fr", "es")[seed % 5]
    pool = [line for line in lines()[:24] if line.language == language]
    parts: list[np.ndarray] = [np.zeros(round(chance.uniform(0.3, 2.0) * RATE), np.float32)]
    at = len(parts[0])
    sentences = []
    while at < seconds * RATE:
        line: Line = chance.choice(pool)
        gain = np.float32(chance.uniform(0.3, 1.0))
        parts.append(line.samples * gain)
        begin = at / RATE
        sentences.append(
            tuple((text, start + begin, end + begin) for text, start, end in line.words)
        )
        pause = np.zeros(round(chance.uniform(0.9, 2.5) * RATE), np.float32)
        parts.append(pause)
        at += len(line.samples) + len(pause)
    samples = np.concatenate(parts)
    samples = (
        samples
        + noise(len(samples) / RATE, level=chance.uniform(0.0, 0.002), seed=seed)[: len(samples)]
    )
    return Script(seed, language, samples.astype(np.float32), tuple(sentences))


@cache
def _silero() -> Silero:
    return Silero()


def decided(script: Script, endpointing: int) -> dict[int, int]:
    """Of each utterance, by its end: the sample by which its endpoint is certain. Both are what the server finds."""
    listener, detector = Listener(Options(endpointing_ms=endpointing)), _silero()
    # As it is after the wire, bit by bit: a probability may lie on the threshold.
    listener.receive_audio(np.frombuffer(pcm(script.samples), "<i2").astype(np.float32) / 32768)
    frames = listener.frames()
    likely = detector.detect([detector.open()], [frames])[0]
    found = {}
    for at in range(len(likely)):
        part = frames[at * FRAME : (at + 1) * FRAME]
        for boundary in listener.receive_probabilities(part, likely[at : at + 1]):
            if isinstance(boundary, Stopped):
                found[boundary.end] = listener.heard
    return found


async def listen(
    url: str,
    script: Script,
    options: dict[str, str],
    start: float,
    commit: float | None,
    speed: float = 1.0,
) -> Heard:
    """One paced stream."""
    from websockets.asyncio.client import connect

    heard = Heard(script)
    data = pcm(script.samples)
    # A commit goes out once the last word of a sentence is over: as a push-to-talk button would be let go.
    due = [sentence[-1][2] + commit for sentence in script.sentences] if commit is not None else []
    query = urlencode({"language": script.language, "sample_rate": RATE} | options)
    try:
        async with connect(
            f"{url}/v1/audio/transcriptions/stream?{query}", compression=None, max_queue=None
        ) as socket:
            first = json.loads(await socket.recv())
            if first["type"] == "error":
                heard.refused = first["message"]
                return heard

            async def read() -> None:
                async for text in socket:
                    heard.messages.append((time.monotonic(), json.loads(text)))

            reading = asyncio.create_task(read())
            await asyncio.sleep(max(0.0, start - time.monotonic()))
            heard.began = time.monotonic()
            for at in range(0, len(data), 2 * MESSAGE):
                spoken = min(at + 2 * MESSAGE, len(data)) / 2 / RATE
                await asyncio.sleep(max(0.0, heard.began + spoken / speed - time.monotonic()))
                heard.sent.append(time.monotonic())
                await socket.send(data[at : at + 2 * MESSAGE])
                while due and due[0] <= spoken:
                    due.pop(0)
                    heard.commits.append(time.monotonic())
                    await socket.send(json.dumps({"type": "commit"}))
            await socket.send(json.dumps({"type": "end"}))
            await asyncio.wait_for(reading, 300)
    except Exception as error:  # a refused or broken stream is a result, too
        heard.error = f"{type(error).__name__}: {error}"
    return heard


def client(
    url: str, scripts: list[Script], options: dict[str, str], start: float, commit: float | None
) -> list[Heard]:
    """One process of paced streams, begun 0 … 1 s apart so that they do not speak in step."""

    async def main() -> list[Heard]:
        offsets = [random.Random(at).random() for at in range(len(scripts))]
        return await asyncio.gather(
            *(
                listen(url, script, options, start + offset, commit)
                for script, offset in zip(scripts, offsets, strict=True)
            )
        )

    return asyncio.run(main())


# What the messages say.


def plain(text: str) -> list[str]:
    """Words without case and punctuation."""
    kept = "".join(each if each.isalnum() or each in "' " else " " for each in text.lower())
    return kept.split()


@dataclass
class Figures:
    """All measurements of one level of load."""

    first: list[float] = field(default_factory=list)
    word: list[float] = field(default_factory=list)
    commit: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    erased: int = 0
    shown: int = 0
    changed: int = 0
    words: int = 0
    errors: int = 0
    missing: int = 0
    extra: int = 0
    lost: int = 0
    doubled: int = 0
    committed_words: int = 0
    committed_errors: int = 0
    partials: int = 0
    speech: float = 0.0
    failed: list[str] = field(default_factory=list)
    offline: Sequence[int] = ()
    """Word errors and words of the same audio over REST."""

    def take(self, heard: Heard, endpointing: int | None) -> None:
        """Add one stream; `endpointing` in milliseconds, None where the client ends utterances."""
        if heard.refused:
            self.failed.append(f"refused: {heard.refused}")
            return
        if heard.error:
            self.failed.append(heard.error)
        self.failed += [m["message"] for _, m in heard.messages if m["type"] == "error"]
        truth = [
            (plain(text)[0] if plain(text) else text, start, end)
            for s in heard.script.sentences
            for text, start, end in s
        ]
        self.speech += sum(s[-1][2] - s[0][1] for s in heard.script.sentences)
        finals = [(when, m) for when, m in heard.messages if m["type"] == "final"]
        partials: dict[int, list[tuple[float, dict]]] = {}
        for when, message in heard.messages:
            if message["type"] == "partial":
                partials.setdefault(message["utterance"], []).append((when, message))
        said = [
            (word, m["utterance"], at)
            for _, m in finals
            for at, word in enumerate(plain(m["text"]))
        ]
        found = jiwer.process_words(
            " ".join(w for w, _, _ in truth), " ".join(w for w, _, _ in said) or "∅"
        )
        self.words += len(truth)
        self.missing += found.deletions
        self.extra += found.insertions
        self.errors += found.substitutions + found.deletions + found.insertions
        place = {}  # word of the finals -> true word, where they are the same
        for chunk in found.alignments[0]:
            if chunk.type == "equal":
                for step in range(chunk.ref_end_idx - chunk.ref_start_idx):
                    _, utterance, at = said[chunk.hyp_start_idx + step]
                    place[utterance, at] = truth[chunk.ref_start_idx + step]
        committed_by = {}
        for when, final in finals:
            number = final["utterance"]
            text = plain(final["text"])
            shown = [
                (t, plain(m["committed"] + m["tentative"]), m["committed"])
                for t, m in partials.get(number, [])
            ]
            self.partials += len(shown)
            before = ""
            for _, _, committed in [*shown, (when, text, final["text"])]:
                self.changed += not committed.startswith(before)
                before = committed
            committed_by[number] = len(plain(shown[-1][2])) if shown else 0
            self.erased += sum(
                len(old) - _common(old, new)
                for (_, old, _), (_, new, _) in zip(
                    shown, [*shown[1:], (when, text, "")], strict=False
                )
            )
            self.shown += len(text)
            mine = [(at, place[number, at]) for at in range(len(text)) if (number, at) in place]
            for at, (word, _, end) in mine:
                spoken = heard.began + end
                seen = [t for t, words, _ in shown if len(words) > at and words[at] == word] + [
                    when
                ]
                held = [t for t, _, committed in shown if len(plain(committed)) > at] + [when]
                self.word.append(seen[0] - spoken)
                self.commit.append(held[0] - spoken)
            if mine and mine[0][0] == 0 and shown:
                self.first.append(
                    next((t for t, words, _ in shown if words), when) - heard.began - mine[0][1][1]
                )
            # Where the last word was misheard, the one before it tells nothing.
            last = max((word for word in truth if word[1] < final["end"]), key=lambda word: word[2])
            if mine and mine[-1] == (len(text) - 1, last):
                self.final.append(when - heard.began - last[2])
        if endpointing is not None:
            known = decided(heard.script, endpointing)
            ends = [round(final["end"] * RATE) for _, final in finals]
            self.lost += len(set(known) - set(ends))
            self.doubled += len(ends) - len(set(ends) & set(known))
            for when, final in finals:
                at = known.get(round(final["end"] * RATE))
                if at is not None and (number := -(-at // MESSAGE) - 1) < len(heard.sent):
                    self.share.append(when - heard.sent[number])
        for sent in heard.commits:
            after = [t for t, m in finals if t > sent]
            if after:
                self.answer.append(after[0] - sent)
        self._committed(found, said, committed_by)

    def _committed(self, found: jiwer.WordOutput, said: list, committed_by: dict[int, int]) -> None:
        """Errors among the words that were committed before the final, and what is missing between them."""

        def committed(at: int) -> bool:
            return at < len(said) and said[at][2] < committed_by.get(said[at][1], 0)

        for chunk in found.alignments[0]:
            if chunk.type == "delete" and committed(chunk.hyp_start_idx):
                gone = chunk.ref_end_idx - chunk.ref_start_idx
                self.committed_words += gone
                self.committed_errors += gone
            for at in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                if committed(at):
                    self.committed_words += chunk.type != "insert"
                    self.committed_errors += chunk.type != "equal"


def _common(old: Sequence[str], new: Sequence[str]) -> int:
    at = 0
    while at < min(len(old), len(new)) and old[at] == new[at]:
        at += 1
    return at


def quantiles(values: Iterable[float]) -> str:
    """P50/P95/P99 in ms."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    return "/".join(f"{1000 * _at(q, ordered):.0f}" for q in (0.5, 0.95, 0.99))


def at95(values: Iterable[float]) -> float:
    """P95 in seconds."""
    return _at(0.95, sorted(values))


def _at(q: float, ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


# The server.


def serve(shape: str, port: int, window: str, more: list[str]) -> subprocess.Popen:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SystemExit(f"another server listens on port {port}: end it, or give --port")
    path = toy.build(shape)
    server = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--port", str(port), "--model", f"toy={path}", "--default-model", "toy",
         "--offline", "--device", "cpu", "--window", window, "--preload", "toy", "--log-level", "warning", *more],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
                if answer.status == 200:
                    return server
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def cpu_seconds(pid: int) -> float:
    """Of the process and its descendants; those that are gone are counted with who waited for them."""
    ticks, total = os.sysconf("SC_CLK_TCK"), 0.0
    for each in family(pid):
        try:
            found = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(map(int, found[11:15])) / ticks
    return total


def memory(pid: int) -> float:
    """MiB in memory, of the processes of its models too."""
    return resident(pid) * 1e6 / 2**20


def offline(port: int, script: Script) -> tuple[int, int]:
    """Word errors and words of the same audio over REST."""
    if script.seed in _offline:
        return _offline[script.seed]
    import httpx2

    answer = httpx2.post(
        f"http://127.0.0.1:{port}/v1/audio/transcriptions",
        data={"response_format": "text", "language": script.language},
        files={"file": ("a.wav", wav(script.samples))},
        timeout=300,
    )
    answer.raise_for_status()
    found = jiwer.process_words(" ".join(plain(script.text)), " ".join(plain(answer.text)) or "∅")
    errors = found.substitutions + found.deletions + found.insertions
    _offline[script.seed] = errors, len(plain(script.text))
    return _offline[script.seed]


_offline: dict[int, tuple[int, int]] = {}  # rows share scripts


def partials_shed(port: int) -> list[float]:
    """Partials of the toy so far that gave way to newer ones, and that were decoded."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return [
        sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(name, line))
        for name in SHED_AND_DECODED
    ]


class Bulk:
    """Recordings of ten minutes, one after another, while the streams speak."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.done = 0.0
        """Seconds of audio that were transcribed."""

    def __enter__(self) -> Bulk:
        self._thread.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        import httpx2

        audio = wav(np.tile(lines()[24].samples, 8))
        while not self._stop.is_set():
            with httpx2.stream(
                "POST",
                f"http://127.0.0.1:{self._port}/v1/audio/transcriptions",
                data={"response_format": "verbose_json", "language": "en", "stream": "true"},
                files={"file": ("bulk.wav", audio)},
                timeout=300,
            ) as answer:
                at = 0.0
                for line in answer.iter_lines():
                    for segment in json.loads(line[6:]).get("segments", []) if line else []:
                        self.done += segment["end"] - at
                        at = segment["end"]
                    if self._stop.is_set():
                        break


COLUMNS = (
    "streams", "first partial", "word", "commit", "speech -> final", "our share", "erasure", "WER %",
    "WER of committed %", "REST WER %", "missing/extra", "lost/doubled", "changed", "partials a s", "shed", "CPU",
    "MiB",
)  # fmt: skip


def measure(
    given: argparse.Namespace, server: subprocess.Popen, streams: int, *, bulk: bool = False
) -> Figures:
    """One row of the table."""
    scripts = [compose(given.seed + at, given.seconds) for at in range(given.rounds * streams)]
    processes = min(streams, 2)
    options = {"endpointing_ms": str(given.endpointing), "partials": "true"}
    if given.detect:
        options["language"] = "auto"
    if given.commit:
        options["endpointing_ms"] = "5000"
    beside = Bulk(given.port) if bulk else None
    with (
        beside or nullcontext(),
        multiprocessing.get_context("spawn").Pool(processes) as pool,
    ):
        url = f"ws://127.0.0.1:{given.port}"
        before, began = cpu_seconds(server.pid), time.monotonic()
        shed, told = partials_shed(given.port), []
        for first in range(0, len(scripts), streams):
            side_by_side = scripts[first : first + streams]
            start = time.monotonic() + 3.0
            told += pool.starmap(
                client,
                [
                    (url, share, options, start, given.commit_after if given.commit else None)
                    for share in (side_by_side[at::processes] for at in range(processes))
                ],
            )
        lasted = time.monotonic() - began
        shed = [now - then for now, then in zip(partials_shed(given.port), shed, strict=True)]
        used = (cpu_seconds(server.pid) - before) / (lasted - 3.0 * given.rounds)
    figures = Figures()
    for share in told:
        for heard in share:
            figures.take(heard, None if given.commit else given.endpointing)
    if given.gap:
        figures.offline = [
            sum(each) for each in zip(*(offline(given.port, s) for s in scripts), strict=True)
        ]
    row = (
        streams, quantiles(figures.first), quantiles(figures.word), quantiles(figures.commit),
        quantiles(figures.answer if given.commit else figures.final), quantiles(figures.share),
        f"{figures.erased / max(1, figures.shown):.3f}",
        f"{100 * figures.errors / max(1, figures.words):.2f}",
        f"{100 * figures.committed_errors / max(1, figures.committed_words):.2f}",
        f"{100 * figures.offline[0] / figures.offline[1]:.2f}" if given.gap else "",
        f"{figures.missing}/{figures.extra}", f"{figures.lost}/{figures.doubled}" if not given.commit else "",
        figures.changed, f"{figures.partials / max(1.0, figures.speech):.1f}",
        f"{100 * shed[0] / max(1.0, sum(shed)):.0f} %", f"{100 * used:.0f} %",
        f"{memory(server.pid):.0f}",
    )  # fmt: skip
    print("| " + " | ".join(map(str, row)) + " |", flush=True)
    for fault in sorted(set(figures.failed)):
        print(f"    {figures.failed.count(fault)} x {fault}")
    if beside is not None:
        print(f"    meanwhile recordings at {beside.done / lasted:.1f} times real time")
    return figures


def gap(figures: Figures) -> None:
    """What streaming costs in words: the same audio, live and over REST."""
    errors, words = figures.offline
    rest = 100 * errors / words
    finals = 100 * figures.errors / max(1, figures.words)
    committed = 100 * figures.committed_errors / max(1, figures.committed_words)
    print(
        f"\n{words} words; wrong: REST {rest:.2f} %, finals {finals:.2f} % ({finals - rest:+.2f}),"
        f" committed before the final {committed:.2f} % ({committed - rest:+.2f}) of {figures.committed_words}"
    )


def hour(given: argparse.Namespace, server: subprocess.Popen) -> None:
    """One recording of an hour through one socket at ten times real time: memory, offsets, words."""
    script, speed = compose(given.seed, 3600.0), 10.0
    at: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        began = time.monotonic()
        while not over.wait(10.0):
            at.append((time.monotonic() - began, memory(server.pid)))

    watching = threading.Thread(target=watch)
    watching.start()
    options = {"endpointing_ms": str(given.endpointing)}
    url = f"ws://127.0.0.1:{given.port}"
    heard = asyncio.run(listen(url, script, options, time.monotonic(), None, speed))
    over.set()
    watching.join()
    figures = Figures()
    figures.take(heard, None)
    finals = [m for _, m in heard.messages if m["type"] == "final"]
    known = decided(script, given.endpointing)
    exact = sum(round(m["end"] * RATE) in known for m in finals)
    end = heard.messages[-1][1] if heard.messages else {}
    lasted = heard.messages[-1][0] - heard.began
    print(
        f"{len(script.samples) / RATE:.2f} s heard in {lasted:.0f} s, {len(finals)} finals,"
        f" {exact} of them end at the very sample that the detector alone gives for the recording ({len(known)});"
        f" received {end.get('received')} bytes of {2 * len(script.samples)}, closed by {end.get('type')}"
    )
    print(
        f"{figures.words} words, {figures.errors} wrong, {figures.missing} missing, {figures.extra} too many,"
        f" {figures.changed} committed changed"
    )
    settled = [(when, size) for when, size in at if when > lasted / 5]
    slope = np.polyfit(*zip(*settled, strict=True), 1)[0] if len(settled) > 2 else float("nan")
    print(
        f"memory of the server, MiB: {', '.join(f'{size:.0f}' for _, size in at[:: max(1, len(at) // 8)])};"
        f" {slope * lasted:+.1f} over the hour after its first fifth"
    )
    for fault in sorted(set(figures.failed)):
        print(f"    {figures.failed.count(fault)} x {fault}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="native")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--rounds", type=int, default=1, help="for each row so many, each of other voices"
    )
    parser.add_argument("--window", default="auto", choices=["auto", "short", "full"])
    parser.add_argument("--endpointing", type=int, default=200, help="milliseconds")
    parser.add_argument(
        "--commit", action="store_true", help="the client ends utterances: prints commit -> final"
    )
    parser.add_argument(
        "--gap", action="store_true", help="the audio of each row over REST, too, for its words"
    )
    parser.add_argument(
        "--bulk", action="store_true", help="each row twice: alone, and beside recordings"
    )
    parser.add_argument("--detect", action="store_true", help="tell no language")
    parser.add_argument("--hour", action="store_true", help="one hour at ten times real time")
    parser.add_argument(
        "--commit-after", type=float, default=0.15, help="seconds after the last word"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8191)
    parser.add_argument(
        "--serve", nargs=argparse.REMAINDER, default=[], help="more flags for the server"
    )
    given = parser.parse_args()
    server = serve(given.shape, given.port, given.window, given.serve)
    try:
        print(
            f"toy of shape {given.shape}, int8, window {given.window}, endpointing {given.endpointing} ms,"
            f" {os.cpu_count()} cores shared with the clients; P50/P95/P99 in ms\n"
        )
        if given.hour:
            hour(given, server)
            return
        columns = [
            "commit -> final" if given.commit and each == "speech -> final" else each
            for each in COLUMNS
        ]
        print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
        for streams in given.streams:
            alone = measure(given, server, streams)
            if given.bulk:
                beside = measure(given, server, streams, bulk=True)
                moved = at95(beside.final) / at95(alone.final) - 1
                print(f"    P95 of speech -> final moved by {100 * moved:+.1f} %")
        if given.gap:
            gap(alone)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


if __name__ == "__main__":
    main()
