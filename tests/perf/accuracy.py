"""Words of this server against faster_whisper's own `transcribe`, on the fixture, with the same model in one run.

    python tests/perf/accuracy.py

Prints word errors by language, for translations and for the recording of 80 s, and how far word starts lie from the truth.
`tests/backends/test_accuracy.py` asserts what the table shows.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from streaming.backends import loaders
from streaming.local import LocalEngine, Plan
from streaming.models import Catalogue
from streaming.types import RATE, Device, Options, Recording, Segment, Task
from streaming.vad.silero import Silero
from tests import toy
from tests.fakes import Line, lines, word_count, word_errors

LONG = 24
"""Index of the long recording."""


@dataclass
class Row:
    """Word errors of one part of the fixture."""

    name: str
    words: int = 0
    ours: int = 0
    theirs: int = 0
    batched: int | None = None
    """Of `BatchedInferencePipeline`, for the long recording."""


@dataclass
class Found:
    """A run."""

    rows: list[Row] = field(default_factory=list)
    start_errors: list[float] = field(default_factory=list)
    """Seconds between the true and our start of a word, for sentences without a word error."""

    @property
    def median_start_error(self) -> float:
        """Seconds."""
        return statistics.median(self.start_errors)


async def ours(asked: Sequence[tuple[Line, Task]]) -> list[list[Segment]]:
    """Segments of each recording, through the engine that serves REST."""
    catalogue = Catalogue(loaders(), paths={"toy": toy.build()}, default="toy", offline=True)
    engine = LocalEngine(catalogue, loaders(), Silero, Plan(Device(workers=2, threads=1)))
    try:
        found = []
        for line, task in asked:
            items = engine.transcribe(Recording(line.path), Options(task=task, words=True))
            found.append([item async for item in items if isinstance(item, Segment)])
        return found
    finally:
        await engine.aclose()


def measure() -> Found:
    """Both, on everything."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(str(toy.build()), device="cpu", compute_type="int8", cpu_threads=2)
    asked: list[tuple[Line, Task]] = [(line, "transcribe") for line in lines()]
    asked += [(line, "translate") for line in lines() if line.language != "en"]
    heard = asyncio.run(ours(asked))
    found = Found()
    rows: dict[str, Row] = {}
    for number, ((line, task), segments) in enumerate(zip(asked, heard, strict=True)):
        name = "translation" if task == "translate" else line.language
        if number == LONG:
            name = "long recording"
        row = rows.setdefault(name, Row(name))
        truth = line.translation if task == "translate" else line.text
        row.words += word_count(truth)
        row.ours += word_errors(truth, "".join(segment.text for segment in segments))
        row.theirs += word_errors(truth, _theirs(model, line, task, long=number == LONG))
        if number == LONG:
            pieces, _ = BatchedInferencePipeline(model).transcribe(str(line.path), batch_size=8)
            row.batched = word_errors(truth, "".join(piece.text for piece in pieces))
        if task == "transcribe":
            words = [word for segment in segments for word in segment.words]
            if len(words) == len(line.words):
                found.start_errors += [
                    abs(word.start / RATE - true[1])
                    for word, true in zip(words, line.words, strict=True)
                ]
    found.rows = list(rows.values())
    return found


def _theirs(model: Any, line: Line, task: Task, *, long: bool) -> str:
    more = {"vad_filter": True, "condition_on_previous_text": False} if long else {}
    pieces, _ = model.transcribe(str(line.path), task=task, **more)
    return "".join(piece.text for piece in pieces)


def main() -> None:
    """Print the table."""
    found = measure()
    print(f"{'':16}{'words':>7}{'ours':>14}{'faster_whisper':>17}{'its batches':>14}")
    total = Row("all")
    for row in found.rows:
        total.words += row.words
        total.ours += row.ours
        total.theirs += row.theirs
    for row in [*found.rows, total]:
        batched = "" if row.batched is None else _share(row.batched, row.words)
        print(
            f"{row.name:16}{row.words:7d}{_share(row.ours, row.words):>14}"
            f"{_share(row.theirs, row.words):>17}{batched:>14}"
        )
    print(
        f"\nword starts: median error {found.median_start_error * 1000:.0f} ms"
        f" over {len(found.start_errors)} words"
    )


def _share(errors: int, words: int) -> str:
    return f"{errors} ({100 * errors / words:.1f} %)"


if __name__ == "__main__":
    main()
