"""An open-speech that was installed somewhere, used from the outside as its user does: by its command."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def uv() -> str:
    """The uv that runs the tests, or the one on the path."""
    found = os.environ.get("UV") or shutil.which("uv")
    if not found:
        pytest.skip("uv is not installed; pip install uv")
    return found


def environment(**more: str) -> dict[str, str]:
    """Of a user who has set nothing: no `STT_*`, no virtual environment, no path to this checkout."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STT_", "PYTHON", "VIRTUAL_ENV", "WHISPER__"))
    }
    return kept | more


def run(command: list[str | Path], folder: Path = ROOT, **more: str) -> str:
    """What a command prints. Fails with all it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@dataclass
class Running:
    """A server that was started by its command."""

    url: str
    said: list[str]
    """Its lines so far."""
    process: int
    """Its id."""
    status: int | None = None
    """After the end."""


@contextmanager
def serving(command: Path, folder: Path, **variables: str) -> Iterator[Running]:
    """`open-speech serve` on a free port; ended by SIGTERM, its exit status is in `status` afterwards."""
    process = subprocess.Popen(
        [str(command), "serve", "--port", "0"],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running = Running("", [], process.pid)
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            running.said.append(line)
            if found := re.search(r"open-speech on (http\S+)", line):
                running.url = found[1].replace("localhost", "127.0.0.1")
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        ready.wait(60)
        assert running.url, "".join(running.said)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            running.status = process.wait(30)
        finally:
            process.kill()
            process.wait()
            reader.join()
            assert process.stdout is not None
            process.stdout.close()
