"""Recordings and streams of strangers, decoded in processes of their own: see `sandbox` for what those may do.

Whatever a file does to its process, crash it, fill its memory or never end, it does to that one only; the file's sender
is told that it cannot be decoded, and everybody else notices nothing.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from streaming.audio.containers import BROKEN, FORMATS
from streaming.audio.files import KNOWN, LIMIT, Probe
from streaming.audio.messages import HEAD, Gone, exactly, pack
from streaming.errors import AudioError, NoAudio, Overloaded, TooLong
from streaming.types import RATE, Samples

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that a process may take to open a file, or to decode a few seconds of it: a thousand times what it takes."""
LIVE_PATIENCE = 10.0
"""The same for a piece of a live stream, whose length is far below a second's."""
LIVE_LIMIT = 7 * 86_400.0
"""Seconds of audio by which a live stream's CPU time is measured out; how long it may last is the server's to say."""
BIRTH = 10.0
"""Seconds until a process must be there; the first takes a third of one."""
LIVES = 2
"""Processes that a recording may use up: one that dies may have been killed by something else."""
PIECE = 4 * RATE
"""Samples read at a time, where the reader does not say."""
AHEAD = 2
"""Pieces that are decoded while what came before is recognised."""
BUFFER = 2**20
"""Bytes on their way that the system is asked for; it may give less."""
LONGEST = 16 * 2**20
"""Bytes of the longest message that is believed."""
_FAULTS: dict[str, type[AudioError]] = {
    each.__name__: each for each in (AudioError, NoAudio, TooLong)
}
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
"""All that the program sees of the environment: keys and tokens are none of its business."""
_START = (
    "import sys; sys.path[:] = sys.argv[2:];"
    " from streaming.audio.sandbox import main; main(int(sys.argv[1]))"
)


class _Died(Exception):
    """The process is gone, or had to be killed; the message says which."""


class _Silent(_Died):
    """It said nothing for too long."""


class _Unborn(_Died):
    """It was gone before it had seen the recording: that is not to blame."""


class _Program(subprocess.Popen[bytes]):
    """The program, which forks the processes; they are killed by the system when it ends."""

    unanswered = 0
    """Processes that it was asked for, and of which nothing was heard for `BIRTH` seconds."""


class Nursery:
    """Makes processes; starts the program that forks them when the first is wanted. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._program: _Program | None = None
        self._control: socket.socket | None = None
        self._spare: _Process | None = None
        self._retired: list[_Program] = []
        self._told = False

    def cell(self) -> _Process:
        """A process that will be there in a moment; the next one is made meanwhile. May take a while the first time.

        Raises Overloaded where the system gives no process.
        """
        with self._lock:
            try:
                there, self._spare = self._spare, None
                if there is None or _closed(there.socket):
                    there = self._ask()
                with suppress(OSError):
                    self._spare = self._ask()
            except OSError as error:
                raise _busy(error) from error
            return there

    def _ask(self) -> _Process:
        self._start()
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            for again in (True, False):
                try:
                    assert self._control is not None
                    assert self._program is not None
                    socket.send_fds(self._control, [b"+"], [theirs.fileno()])
                    return _Process(ours, self._program)
                except OSError:  # it has ended, since nothing was to be done, or was killed
                    self._retire()
                    if not again:
                        ours.close()
                        raise
                    self._start()
        raise AssertionError("not reached")

    def warm(self) -> None:
        """Have the program started, so that the first recording does not wait for it."""
        with suppress(OSError), self._lock:
            if self._spare is None or _closed(self._spare.socket):
                self._spare = self._ask()

    def retire(self) -> None:
        """Use another program from now on; this one ends with its last process."""
        with self._lock:
            self._retire()

    def failed(self, process: _Process, *, silent: bool) -> None:
        """`process` never was: use another program from now on.

        Its program is killed, and what it decodes for others with it, only if two are `silent`: it hangs. One may have
        been killed by something else, or have found no memory.
        """
        with self._lock:
            program, spare = process.program, self._spare
            program.unanswered += silent
            if program is self._program:
                if silent and spare is not None and spare.overdue():
                    program.unanswered += 1
                self._retire()
            if program.unanswered > 1:
                program.kill()

    def told(self, missing: list[str]) -> None:
        """Say once what this system cannot take away."""
        if missing and not self._told:
            log.warning(
                "recordings are decoded in processes of their own, but this system does not take from them: %s",
                ", ".join(missing),
            )
        self._told = True

    def close(self) -> None:
        """End the program and wait for it."""
        with self._lock:
            self._retire()
            for each in self._retired:
                each.kill()
                each.wait()
            self._retired.clear()

    def _start(self) -> None:
        self._retired = [each for each in self._retired if each.poll() is None]
        if self._program is not None and self._program.poll() is None:
            return
        self._retire()
        ours, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with theirs:
            try:
                self._program = _Program(
                    [sys.executable, "-I", "-c", _START, str(theirs.fileno()), *sys.path],
                    env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    start_new_session=True,  # a signal to the server's group is not for it
                )
            except BaseException:
                ours.close()
                raise
        self._control = ours

    def _retire(self) -> None:
        for each in (self._control, self._spare):
            if each is not None:
                each.close()
        if self._program is not None:
            self._retired.append(self._program)
        self._program = self._control = self._spare = None


nursery = Nursery()
"""That of this process; started when it is first needed."""
atexit.register(nursery.close)


class _Process:
    """One process that decodes, from the other end of its socket."""

    def __init__(self, there: socket.socket, program: _Program) -> None:
        self.socket = there
        self.program = program
        self._asked = time.monotonic()
        self._handle: int | None = None
        self._pid: int | None = None

    def born(self, kind: str, body: bytes | bytearray) -> None:
        """Take in its first message."""
        if kind != "h":
            raise _Unborn("began with something else")
        hello = json.loads(body)
        self._pid = int(hello["pid"])
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):
                self._handle = os.pidfd_open(self._pid)
        nursery.told(hello["missing"])

    def overdue(self) -> bool:
        """It was asked for long ago, and has neither spoken nor ended."""
        if time.monotonic() - self._asked < BIRTH / 2:
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """End it, whatever it is doing. Idempotent."""
        self.socket.close()
        pid, handle = self._pid, self._handle
        self._pid = self._handle = None
        if handle is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        elif pid is not None and not hasattr(os, "pidfd_open"):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


class Recording:
    """A file that is being decoded. Use it on one event loop, from one task at a time, and close it."""

    def __init__(
        self, path: Path, *, limit: float = LIMIT, piece: int = PIECE, patience: float | None = None
    ) -> None:
        """At most `limit` seconds are decoded; `piece` is the number of samples read at a time."""
        self._path = path
        self._limit = limit
        self._piece = piece
        self._patience = PATIENCE if patience is None else patience
        self._process: _Process | None = None
        self._probe: Probe | None = None
        self._read = 0
        self._ended = False
        self._lives = LIVES

    async def open(self) -> Probe:
        """What the file says. Raises NoAudio, AudioError; OSError where there is no such file."""
        while True:
            try:
                return await self._open()
            except _Died as death:
                self._mourn(death)

    async def read(self) -> Samples | None:
        """The next samples, float32 mono at 16 kHz: a piece, at the end less, then None. Raises AudioError."""
        if self._ended:
            return None
        while True:
            try:
                if self._process is None:
                    await self._open()
                    await self._skip(self._read)
                samples = await self._next()
                break
            except _Died as death:
                self._mourn(death)
        self._read += len(samples)
        self._ended = len(samples) < self._piece
        if self._read > self._limit * RATE + self._piece:
            raise AudioError(_SENTENCE.format("decodes to more than it can hold"))
        if self._ended:
            self.close()
        return samples if len(samples) else None

    def close(self) -> None:
        """Let go of the file, in the middle of it too. Idempotent."""
        if self._process is not None:
            self._process.close()
            self._process = None

    async def _open(self) -> Probe:
        self.close()
        with self._path.open("rb") as file:
            process = self._process = await asyncio.to_thread(nursery.cell)
            there = process.socket
            there.setblocking(False)
            try:
                process.born(*await self._receive(BIRTH))
            except _Died as death:
                nursery.failed(process, silent=isinstance(death, _Silent))
                raise _Unborn(str(death)) from death
            order = pack("f", {"limit": self._limit})
            try:
                socket.send_fds(there, [order], [file.fileno()])
            except OSError as error:
                raise _Died("went away") from error
        kind, body = await self._receive()
        if kind != "p":
            raise _Died("said what it should not")
        found = json.loads(body)
        self._probe = Probe(
            found["duration"], str(found["codec"]), int(found["rate"]), int(found["channels"])
        )
        for _ in range(AHEAD):
            self._ask()
        return self._probe

    async def _skip(self, count: int) -> None:
        while count > 0:
            count -= len(samples := await self._next())
            if len(samples) < self._piece:
                break

    async def _next(self) -> Samples:
        kind, body = await self._receive()
        if kind != "s" or len(body) > 4 * self._piece or len(body) % 4:
            raise _Died("said what it should not")
        samples: Samples = np.frombuffer(body, np.float32)
        if len(samples) == self._piece:
            self._ask()  # what comes next is decoded while this is recognised
        return samples

    def _ask(self) -> None:
        assert self._process is not None
        try:
            self._process.socket.send(pack("n", struct.pack("<I", self._piece)))
        except OSError as error:
            raise _Died("went away") from error

    async def _receive(self, patience: float | None = None) -> tuple[str, bytes | bytearray]:
        """The next message. Raises _Died, and the fault that the process found with the file."""
        assert self._process is not None
        there, loop = self._process.socket, asyncio.get_running_loop()
        patience = self._patience if patience is None else patience

        async def exactly(size: int) -> bytearray:
            data = bytearray(size)
            view, have = memoryview(data), 0
            while have < size:
                taken = await loop.sock_recv_into(there, view[have:])
                if not taken:
                    raise _Died("crashed or was killed")
                have += taken
            return data

        try:
            async with asyncio.timeout(patience):
                kind, size = _head(await exactly(HEAD.size))
                body = await exactly(size)
        except TimeoutError:
            raise _Silent(f"gave no sign of life for {patience:g} s and was killed") from None
        except OSError as error:
            raise _Died("crashed or was killed") from error
        if kind == "x":
            self.close()
            raise _fault(body)
        return kind, body

    def _mourn(self, death: _Died) -> None:
        """Try again, or raise what the sender is told."""
        self.close()
        self._lives -= 1
        if not isinstance(death, _Unborn):
            # Another program lies elsewhere in memory: what an attacker learned of this one is worth nothing there.
            nursery.retire()
        if self._lives:
            log.warning("a process that decoded a recording %s; trying once more", death)
            return
        if isinstance(death, _Unborn):
            raise Overloaded(
                "no process could be started to decode the recording; try again in a moment",
                retry_after=5,
            ) from None
        log.warning("a process that decoded a recording %s again; it is refused", death)
        raise AudioError(_SENTENCE.format("broke its decoder")) from None


class Stream:
    """A `live.Source`: the byte stream of a container, decoded while it comes."""

    blocking = True
    piece: int | None = 16 * 2**10

    def __init__(self, patience: float | None = None) -> None:
        self._patience = LIVE_PATIENCE if patience is None else patience
        self._process: _Process | None = None
        self._over = False
        self._closed = False
        self._total = 0

    def decode(self, chunk: bytes) -> Iterator[Samples]:
        """See `Source.decode`."""
        if not chunk or self._closed:
            return
        if self._over:
            raise AudioError(
                f"the container ended after {self._total / RATE:.1f} s; open a new session for another"
            )
        if self._process is None:
            self._open()
        yield from self._say("b", chunk)

    def flush(self) -> Iterator[Samples]:
        """See `Source.flush`."""
        if self._process is None or self._closed:
            return
        if not self._over:
            yield from self._say("e")
        if not self._total:
            raise AudioError(BROKEN + FORMATS)

    def close(self) -> None:
        """See `Source.close`."""
        self._closed = True
        if self._process is not None:
            self._process.close()

    def _open(self) -> None:
        for lives in (1, 0):
            self._process = nursery.cell()
            there = self._process.socket
            there.settimeout(BIRTH)
            try:
                self._process.born(*self._receive())
                there.settimeout(self._patience)
                there.sendall(pack("l", {"limit": LIVE_LIMIT}))
                break
            except (_Died, OSError) as death:
                self._process.close()
                nursery.failed(self._process, silent=isinstance(death, TimeoutError))
                if not lives:
                    raise _busy(death) from death
        for _ in self._hear():  # it wants the first bytes
            pass

    def _say(self, kind: str, body: bytes = b"") -> Iterator[Samples]:
        assert self._process is not None
        try:
            self._process.socket.sendall(pack(kind, body))
        except OSError as error:
            raise self._dead(error) from error
        yield from self._hear()

    def _hear(self) -> Iterator[Samples]:
        """What comes until it wants more bytes, or no more."""
        while not self._closed:
            try:
                kind, body = self._receive()
            except (_Died, OSError) as error:
                if self._closed:
                    return
                raise self._dead(error) from error
            if kind == "w":
                return
            if kind == "s":
                samples: Samples = np.frombuffer(body[: len(body) // 4 * 4], np.float32)
                self._total += len(samples)
                yield samples
                continue
            self._over = True
            if kind == "x":
                raise _fault(body)
            return

    def _receive(self) -> tuple[str, bytes]:
        assert self._process is not None
        there = self._process.socket
        try:
            kind, size = _head(exactly(there, HEAD.size))
            return kind, exactly(there, size)
        except Gone:
            raise _Died("crashed or was killed") from None

    def _dead(self, error: Exception) -> AudioError:
        log.warning("a process that decoded a stream ended: %r", error)
        self._over = True
        assert self._process is not None
        self._process.close()
        nursery.retire()
        return AudioError(
            "the container broke its decoder; open a new session, with another encoding if it happens again"
        )


def _closed(there: socket.socket) -> bool:
    """The other side is gone, though there may still be something to read."""
    poll = select.poll()
    poll.register(there, select.POLLHUP)
    return bool(poll.poll(0))


_SENTENCE = "the audio cannot be decoded: the file {}; convert it to another format, such as flac, and send that"


def _head(data: bytes | bytearray) -> tuple[str, int]:
    kind, size = HEAD.unpack(data)
    if size > LONGEST:
        raise _Died("said what it should not")
    return kind.decode("ascii", "replace"), size


def _fault(body: bytes | bytearray) -> AudioError:
    """What the process says is wrong with the file."""
    said: dict[str, Any] = json.loads(body)
    kind, message = str(said.get("kind")), str(said.get("message"))[:500]
    if kind in _FAULTS:
        return _FAULTS[kind](message)
    if kind == "Memory":
        return AudioError(_SENTENCE.format("takes more memory than is allowed"))
    log.warning("a process that decoded a recording failed: %s", message)
    return AudioError(f"the audio could not be decoded: the file is damaged; send one of {KNOWN}")


def _busy(error: Exception) -> Overloaded:
    log.error("no process can be started to decode recordings: %r", error)
    return Overloaded(
        "no process could be started to decode the recording; try again in a moment", retry_after=5
    )
