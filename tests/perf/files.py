"""Speed of recordings against the bare library: same model, threads, beam, in one run.

    python tests/perf/files.py [--shape base] [--rounds 5]

Prints, for the 80 s recording of the fixture: the time of `BatchedInferencePipeline`, of this server over REST with full
and with short windows (ratios to the first), of four recordings at once against one after another, and the latency
of /health meanwhile. Rounds are interleaved and medians taken, because machines are noisy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import httpx2

from tests import toy
from tests.fakes import lines, word_errors
from tests.serving import running, with_toy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--language", default=None, help="default: both detect it")
    given = parser.parse_args()
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    path, truth = lines()[24].path, lines()[24].text
    weights = toy.build(given.shape)
    cores = len(os.sched_getaffinity(0))
    bare = BatchedInferencePipeline(
        WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=cores)
    )

    def pipeline() -> str:
        segments, _ = bare.transcribe(str(path), beam_size=5, batch_size=8, language=given.language)
        return "".join(segment.text for segment in segments)

    model = {"model": (f"toy={weights}",), "model_keep_alive": -1.0}
    fields = {"language": given.language} if given.language else {}
    with running(with_toy(**model)) as full, running(with_toy(**model, window="short")) as short:

        def rest(url: str) -> str:
            with path.open("rb") as file:
                answer = httpx2.post(
                    url + "/v1/audio/transcriptions", files={"file": file}, data=fields, timeout=300
                )
            text: str = answer.json()["text"]
            return text

        rows = {
            "bare BatchedInferencePipeline": pipeline,
            "REST, full windows": lambda: rest(full),
            "REST, STT_WINDOW=short": lambda: rest(short),
        }
        times: dict[str, list[float]] = {name: [] for name in rows}
        errors: dict[str, int] = {}
        for number in range(given.rounds + 1):
            for name, work in rows.items():
                started = time.perf_counter()
                text = work()
                if number:  # the first loads and warms up
                    times[name].append(time.perf_counter() - started)
                errors[name] = word_errors(truth, text)
        base = statistics.median(times["bare BatchedInferencePipeline"])
        print(
            f"\n82 s of speech, toy of shape {given.shape}, int8, beam 5, {cores} threads, {given.rounds} rounds\n"
        )
        print(f"{'':32}{'median s':>10}{'best s':>10}{'ratio':>8}{'word errors':>13}")
        for name, taken in times.items():
            median = statistics.median(taken)
            print(
                f"{name:32}{median:10.2f}{min(taken):10.2f}{median / base:8.2f}{errors[name]:13d}"
            )

        latencies: list[float] = []
        done = threading.Event()

        def probe() -> None:
            with httpx2.Client(base_url=full) as client:
                while not done.is_set():
                    started = time.perf_counter()
                    client.get("/health")
                    latencies.append(time.perf_counter() - started)
                    time.sleep(0.01)

        probing = threading.Thread(target=probe)
        probing.start()
        started = time.perf_counter()
        workers = [threading.Thread(target=rest, args=(full,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        together = time.perf_counter() - started
        done.set()
        probing.join()
        alone = 4 * statistics.median(times["REST, full windows"])
        latencies.sort()
        print(
            f"\nfour at once {together:.2f} s, one after another {alone:.2f} s: {together / alone:.2f}"
        )
        print(
            f"/health meanwhile: p50 {latencies[len(latencies) // 2] * 1000:.1f} ms,"
            f" p99 {latencies[len(latencies) * 99 // 100] * 1000:.1f} ms, {len(latencies)} probes"
        )


if __name__ == "__main__":
    main()
