"""A server in a process of its own, which faults are done to; and what says that it is none the worse for them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.drive import speak
from tests.fakes import pcm

ROOT = Path(__file__).parents[2]
STREAM = "/v1/audio/transcriptions/stream"
FILES = "/v1/audio/transcriptions"
PATIENCE = 20.0
"""Seconds after which what should have happened has not."""
HEALTH = 2.0
"""Seconds in which `/health` answers beside every fault, also where the test keeps all cores busy. Measured on two: 0.8
where the server is stopped for a second, 0.3 at the worst of the others."""


class Process:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], temporary: Path) -> None:
        self.process = process
        self.temporary = temporary
        self.arguments: list[str] = []
        self.environment: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        """Of whoever looks, and of the honest stream: a key."""
        self.url = ""
        self.said: list[str] = []
        """Its log, a line each."""
        self._probe = httpx2.Client(
            timeout=PATIENCE, verify=False
        )  # making a TLS context costs most
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, name="log of the server")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with suppress(ValueError):
            for line in self.process.stderr:
                self.said.append(line)
                if found := re.search(r"open-speech on (http\S+)", line):
                    self.url = found[1].replace("localhost", "127.0.0.1")
                    self._ready.set()
        self._ready.set()

    @property
    def log(self) -> str:
        return "".join(self.said)

    @property
    def socket_url(self) -> str:
        return self.url.replace("http", "ws", 1) + STREAM

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_ready(self) -> None:
        """Until it listens and takes work."""
        assert self._ready.wait(60)
        assert self.url, self.log
        until(lambda: self.get("/readyz").status_code == 200)

    def get(self, path: str) -> httpx2.Response:
        return self._probe.get(self.url + path, headers=self.headers)

    def post(self, path: str, **what: Any) -> httpx2.Response:
        return self._probe.post(self.url + path, **what)

    def memory(self) -> int:
        """Bytes of it in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """Files and sockets that it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def uploads(self) -> list[str]:
        """Recordings that it has on disk: they have no name in the temporary folder."""
        found = []
        for each in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(each))
        return [each for each in found if each.startswith(str(self.temporary))]

    def stored(self) -> int:
        """Bytes of them."""
        found = 0
        for each in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(each).startswith(str(self.temporary)):
                    found += each.stat().st_size
        return found

    def children(self) -> list[int]:
        """Processes that it started."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread may have ended
                found += [int(each) for each in (task / "children").read_text().split()]
        return found

    def working(self) -> int:
        """Requests and streams at work."""
        return int(self.get("/counters").json()["working"])

    def open(self) -> float:
        """Streams and recordings that its metrics know of."""
        return sum(
            float(line.rpartition(" ")[2])
            for line in self.get("/metrics").text.splitlines()
            if re.match(r"open_speech_(engine_)?(streams|recordings)_open", line)
        )

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit status, once all it said was read."""
        status = self.process.wait(seconds)
        self._reader.join(PATIENCE)
        return status

    def close(self) -> None:
        """End it, whatever state it is in."""
        self._probe.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def serving(
    *flags: str,
    faults: dict[str, Any] | None = None,
    before: Sequence[str] = (),
    ready: bool = True,
    stdout: Any = subprocess.DEVNULL,
    cost: float = 0.0,
    key: str | None = None,
    **variables: str,
) -> Iterator[Process]:
    """A server around the scripted recogniser, which takes `cost` seconds a window. `faults` are module attributes to set in it, `before` a command that runs
    it (such as `prlimit`), `key` the one of who watches it, `variables` its environment."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        model = Path(folder) / "scripted"
        model.mkdir()
        (model / "scripted").write_text(str(cost))
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        command = [*before, sys.executable, "-m", "tests.faults.countable", "serve", "--port", "0"]
        command += ["--model", f"scripted={model}", "--default-model", "scripted", *flags]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("STT_")
        }
        environment |= {"STT_OFFLINE": "true", "STT_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
        environment |= {"TMPDIR": str(temporary)}
        environment |= {"FAULTS": json.dumps(faults or {}), **variables}
        process = Process(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
            ),
            temporary,
        )
        process.arguments = command[command.index("serve") :]
        process.environment = environment
        if key is not None:
            process.headers = {"x-api-key": key}
        try:
            if ready:
                process.wait_ready()
            yield process
        finally:
            process.close()


def until(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for something that nobody announces."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def words(first: int, count: int) -> list[int]:
    """Words to speak, no two neighbours alike."""
    return [(first + 7 * at) % 60 for at in range(count)]


def spelt(said: Sequence[int | float]) -> str:
    """What a transcript of `said` reads."""
    return " ".join(f"w{word}" for word in said if isinstance(word, int))


def text(messages: Sequence[dict[str, Any]]) -> str:
    """The finals' text."""
    return " ".join(each["text"] for each in messages if each["type"] == "final" and each["text"])


def rest(socket: Any) -> list[dict[str, Any]]:
    """All messages up to the close."""
    found = []
    with suppress(ConnectionClosed):
        while True:
            found.append(json.loads(socket.recv(timeout=PATIENCE)))
    return found


class Control:
    """An honest session beside the fault: it speaks all along, and no word of it may be lost or doubled. `/health` has
    to answer in time."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self._said: list[int | float] = []
        self._over = threading.Event()
        self._found: list[dict[str, Any]] = []
        self._failed: BaseException | None = None
        self.slowest = 0.0
        """Seconds that the slowest answer of `/health` took meanwhile."""
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control")
        self._thread.start()
        assert self._opened.wait(PATIENCE)

    def _run(self) -> None:
        try:
            self._talk()
        except BaseException as error:
            self._failed = error
        finally:
            self._opened.set()

    def _talk(self) -> None:
        url, headers = self._server.socket_url + "?partials=false", self._server.headers
        with (
            connect(
                url,
                additional_headers=headers,
                open_timeout=PATIENCE,
                max_queue=None,
            ) as socket,
            httpx2.Client(
                base_url=self._server.url, headers=headers, timeout=PATIENCE, verify=False
            ) as probe,
        ):
            assert json.loads(socket.recv(timeout=PATIENCE))["type"] == "ready"
            turn = 0
            while turn == 0 or not self._over.is_set():
                said: list[int | float] = [*words(turn, 3), 0.6]
                socket.send(pcm(speak(said)))
                self._said += said
                began = time.monotonic()
                assert probe.get("/health").status_code == 200
                self.slowest = max(self.slowest, time.monotonic() - began)
                self._opened.set()
                turn += 1
                self._over.wait(0.3)
            socket.send('{"type": "end"}')
            self._found = rest(socket)

    def finish(self) -> None:
        """End it: it heard all it said, exactly once, and health was answered throughout."""
        self._over.set()
        self._thread.join(3 * PATIENCE)
        assert not self._thread.is_alive(), "the control session hangs"
        if self._failed is not None:
            raise AssertionError("the control session was harmed") from self._failed
        assert self._found[-1]["reason"] == "client"
        assert text(self._found) == spelt(self._said)
        assert self.slowest < HEALTH, f"/health took {self.slowest:.1f} s"


class alive:
    """While the block runs an honest session speaks beside it; afterwards nothing of what the block did is left.

    Connections that a probe keeps alive, and a model's files, come and go: a leak is more than `few` descriptors.
    """

    def __init__(self, server: Process, *, errors: bool = False, few: int = 4) -> None:
        self._server, self._few = server, few
        self._errors = errors  # may be told in the log

    def __enter__(self) -> Control:
        self._lines = len(self._server.said)
        self._open = self._server.descriptors()
        self._control = Control(self._server)
        return self._control

    def __exit__(self, *fault: object) -> None:
        self._control.finish()
        if fault[0] is not None:
            return
        server = self._server
        assert server.process.poll() is None, server.log
        said = "".join(server.said[self._lines :])
        assert self._errors or "Traceback" not in said, said
        assert self._errors or " error " not in said, said
        until(lambda: server.working() == 0 and server.open() == 0)
        until(lambda: server.descriptors() <= self._open + self._few)
