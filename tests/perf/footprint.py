"""What an installation costs: disk, memory, time to start.

    python tests/perf/footprint.py

Installs the server as the CPU image does, in a temporary folder (needs uv and a package index), and prints its size, the
time of `open-speech --help` and from start to the first answer of /livez, and memory: idle, and with the toy in the shape
of Whisper's base after a sentence.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx2

from tests import toy
from tests.fakes import lines
from tests.installed import ROOT, environment, run, serving, uv


def main() -> None:
    """Install, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "open-speech"
        tools = f"{Path(uv()).parent}:{os.environ['PATH']}"
        run(
            ["/bin/sh", ROOT / "docker" / "install-cpu.sh", place],
            PATH=tools,
            PYTHON=sys.executable,
            UV_LINK_MODE="copy",
        )
        command = place / "bin" / "open-speech"
        files = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
        print(f"installed          {sum(path.stat().st_size for path in files) / 1e6:.0f} MB")
        print(f"--help             {_median(lambda: _help(command)):.2f} s")
        settings = {"STT_DEVICE": "cpu", "STT_OFFLINE": "true", "STT_LOG_LEVEL": "error"}
        print(f"start to /livez    {_median(lambda: _start(command, folder, settings)):.2f} s")
        with serving(command, Path(folder), **settings) as server:
            while httpx2.get(server.url + "/readyz").status_code != 200:
                pass
            print(f"memory, idle       {resident(server.process):.0f} MB")
        base = {"STT_MODEL": f"base={toy.build('base')}", "STT_DEFAULT_MODEL": "base"}
        with serving(command, Path(folder), **settings, **base) as server:
            with lines()[0].path.open("rb") as file:
                httpx2.post(
                    server.url + "/v1/audio/transcriptions", files={"file": file}, timeout=60
                )
            print(f"memory, base used  {resident(server.process):.0f} MB")


def _median(measure: object) -> float:
    assert callable(measure)
    return statistics.median(measure() for _ in range(5))


def _help(command: Path) -> float:
    started = time.perf_counter()
    subprocess.run([command, "--help"], stdout=subprocess.DEVNULL, check=True, env=environment())
    return time.perf_counter() - started


def _start(command: Path, folder: str, settings: dict[str, str]) -> float:
    started = time.perf_counter()
    with serving(command, Path(folder), **settings) as server:
        assert httpx2.get(server.url + "/livez").status_code == 200
        return time.perf_counter() - started


def family(process: int) -> list[int]:
    """A process and its descendants: models live in processes of their own."""
    found = [process]
    with suppress(FileNotFoundError):  # threads and processes come and go
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(FileNotFoundError):
                for child in (task / "children").read_text().split():
                    found += family(int(child))
    return found


def resident(process: int) -> float:
    """MB in memory of a process and its descendants; what several share counts once."""
    return sum(_proportional(each) for each in family(process))


def _proportional(process: int) -> float:
    try:
        rows = Path(f"/proc/{process}/smaps_rollup").read_text("utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(next(row for row in rows if row.startswith("Pss:")).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
