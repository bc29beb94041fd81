"""What decoding in confined processes costs, against decoding here: `python -m tests.perf.media [--rounds 7]`.

Prints medians: opening and reading a WAV of 3 s and an MP3 of ten minutes, the first process, and the memory of one.
Rounds are interleaved, because machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from streaming.audio import files, media
from streaming.types import RATE
from tests.fakes import noise, wav


def mp3(seconds: int) -> bytes:
    """Noise at 44.1 kHz, stereo, 128 kbit/s."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=44_100, layout="stereo")
        for turn in range(seconds):
            sound = np.repeat(noise(44_100 / RATE, 0.1, turn)[None], 2, axis=0)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
            frame.sample_rate = 44_100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


async def guarded(path: Path) -> tuple[float, int]:
    """Seconds and samples, by a process."""
    began, count = time.perf_counter(), 0
    recording = media.Recording(path)
    await recording.open()
    while (samples := await recording.read()) is not None:
        count += len(samples)
    recording.close()
    return time.perf_counter() - began, count


def here(path: Path) -> tuple[float, int]:
    """The same, in this process."""
    began = time.perf_counter()
    files.probe(path)
    count = sum(map(len, files.decode(path)))
    return time.perf_counter() - began, count


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short", Path(folder) / "long"
        short.write_bytes(wav(noise(3.0, 0.1)))
        long.write_bytes(mp3(600))
        first, _ = await guarded(short)
        here(short)
        print(f"first of all                {1000 * first:8.1f} ms")
        for name, path, times in (
            ("WAV of 3 s", short, 10 * rounds),
            ("MP3 of 10 min", long, rounds),
        ):
            found: dict[str, list[float]] = {"here": [], "guarded": []}
            for _ in range(times):
                a, b = here(path), await guarded(path)
                assert a[1] == b[1]
                found["here"].append(a[0])
                found["guarded"].append(b[0])
                await asyncio.sleep(0.02)
            one, two = (1000 * statistics.median(each) for each in found.values())
            print(
                f"{name:15} in-process {one:8.1f} ms, guarded {two:8.1f} ms, {two - one:+.1f} ms, {two / one - 1:+.1%}"
            )
        recording = media.Recording(long)
        await recording.open()
        await recording.read()
        assert recording._process is not None
        lines = Path(f"/proc/{recording._process._pid}/smaps_rollup").read_text().splitlines()
        own = sum(int(line.split()[1]) for line in lines if line.startswith("Private"))
        print(f"memory of a process         {own / 1024:8.1f} MB of its own")
        recording.close()


if __name__ == "__main__":
    asyncio.run(main())
