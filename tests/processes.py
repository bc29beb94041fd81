"""A server in a process of its own, with what Linux tells about it and its children.

    python -m tests.processes FLAGS…

is `open-speech serve FLAGS…` with the detector of `tests.fakes.Loudness`: the scripted recogniser speaks in levels
that no real detector takes for speech.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests import toy

ROOT = Path(__file__).parents[1]


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    """Its lines so far."""

    @property
    def pid(self) -> int:
        return self.process.pid


@contextmanager
def serving(*flags: str, shape: str = "native", scripted: bool = False) -> Iterator[Running]:
    """A server with one model, `toy`, loaded and ready, on a free port. SIGTERM ends it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if scripted:
            (path / "scripted").touch()
        else:
            path = toy.build(shape)
        command = [
            sys.executable,
            "-m",
            *(["tests.processes"] if scripted else ["server", "serve"]),
        ]
        command += ["--port", "0", "--model", f"toy={path}", "--default-model", "toy"]
        command += ["--preload", "toy", "--offline", "--device", "cpu", *flags]
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        running, listening = Running("", process), threading.Event()

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                running.said.append(line)
                if found := re.search(r"open-speech on https?://\S+:(\d+)", line):
                    running.url = f"http://127.0.0.1:{found[1]}"
                    listening.set()
            listening.set()

        reader = threading.Thread(target=read, name="server's words")
        reader.start()
        try:
            listening.wait(60)
            assert running.url, "".join(running.said)
            until = time.monotonic() + 60
            with httpx2.Client(base_url=running.url, timeout=10) as client:
                while client.get("/readyz").status_code != 200:
                    assert time.monotonic() < until, "".join(running.said)
                    time.sleep(0.05)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()
                process.wait()
                reader.join()
                assert process.stderr is not None
                process.stderr.close()


def children(pid: int) -> list[int]:
    """Processes that `pid` began and that live, theirs included."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *children(child)]
    return found


def command(pid: int) -> str:
    """Its command line; empty once it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def memory(pid: int) -> tuple[float, float]:
    """MiB resident, and its share of them (PSS): pages that processes share are counted once."""
    rss = pss = 0.0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Rss:", "Pss:")):
                size = int(line.split()[1]) / 1024
                rss, pss = (size, pss) if line.startswith("Rss:") else (rss, size)
    return rss, pss


def descriptors(pid: int) -> int:
    """Open files and sockets."""
    with suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


def threads(pid: int) -> int:
    """Threads."""
    with suppress(OSError):
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    return 0


def _main() -> int:
    from server import cli
    from streaming.vad import silero
    from tests.fakes import Loudness

    silero.Silero = Loudness  # type: ignore[assignment, misc]
    return cli.main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(_main())
