"""Speed, latency and memory of this machine by the size of Whisper, with the toy in those shapes.

    python tests/perf/models.py [--shapes tiny,base,small]

A toy of a shape costs what that Whisper costs, and knows what the toy knows: word errors on real speech are what
`python -m tests.real` is for. Prints a Markdown table: how many seconds of the recording of 80 s are transcribed in a
second over REST; from the beginning of speech to its first words, and from its end to its final, in sentences sent in
real time; memory of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx2

from tests import toy
from tests.fakes import lines
from tests.installed import serving
from tests.perf.footprint import resident
from tests.real.comparison import paced_latency
from tests.real.recordings import Utterance

SECONDS = 82.0
"""Of the long recording."""


def main() -> None:
    """Measure each shape, print a row each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="tiny,base,small")
    parser.add_argument("--sentences", type=int, default=6)
    given = parser.parse_args()
    command = Path(sys.executable).with_name("open-speech")
    print(f"{len(os.sched_getaffinity(0))} CPU cores, int8, default settings\n")
    print("| size | REST, × real time | first words P50 | final P50 | memory |")
    print("|---|--:|--:|--:|--:|")
    for shape in given.shapes.split(","):
        variables = {
            "STT_MODEL": f"toy={toy.build(shape)}",
            "STT_DEFAULT_MODEL": "toy",
            "STT_DEVICE": "cpu",
            "STT_OFFLINE": "true",
            "STT_LOG_LEVEL": "error",
            "STT_PRELOAD": "toy",
        }
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(command, Path(folder), **variables) as server,
        ):
            while httpx2.get(server.url + "/readyz").status_code != 200:
                pass
            sights: list[float] = []
            finals: list[float] = []
            for line in lines()[: given.sentences]:
                utterance = Utterance(line.path, line.language, line.text)
                first, last = asyncio.run(paced_latency(server.url, "toy", utterance))
                sights += first
                finals += last
            taken = statistics.median(_rest(server.url) for _ in range(3))
            print(
                f"| `{shape}` | {SECONDS / taken:.1f} | {statistics.median(sights):.2f} s"
                f" | {statistics.median(finals):.2f} s | {resident(server.process):.0f} MB |",
                flush=True,
            )


def _rest(url: str) -> float:
    started = time.perf_counter()
    with lines()[24].path.open("rb") as file:
        answer = httpx2.post(url + "/v1/audio/transcriptions", files={"file": file}, timeout=None)
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
