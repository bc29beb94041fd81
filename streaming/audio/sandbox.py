"""The program in which recordings of strangers are decoded; `media` starts it and speaks to it.

Started once, it loads the decoders, gives up the network, and forks a process for each recording: a millisecond, and no
recording ever shares one with another. Such a process gives up everything but memory, time and two descriptors, the
socket to the server and the recording, before it looks at a byte; what the system does not take, it tells the server.
Nothing here has threads, so forking is safe.
"""

from __future__ import annotations

import array
import ctypes
import gc
import io
import json
import os
import select
import signal
import socket
import struct
import sys
import wave
from contextlib import suppress
from typing import Any, NoReturn

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

import numpy as np

from streaming.audio import calls, files
from streaming.audio.containers import Container
from streaming.audio.messages import HEAD, Gone, pack, receive
from streaming.audio.resample import Resampler
from streaming.errors import AudioError
from streaming.types import Samples

MEMORY = 512 * 2**20
"""Bytes that decoding one recording may take; the greediest format wants a tenth."""
SECONDS = 60, 20
"""Of CPU time for a recording: so many, and one more for so many seconds of the longest audio allowed."""
IDLE = 300.0
"""Seconds without a recording after which the program ends; the next one starts it again."""
SOCKET, RECORDING = 3, 4
"""The descriptors of a process. It may have no higher ones, but a limit alone would be no lock: see `calls`."""

_libc = ctypes.CDLL(None, use_errno=True)


# The program.


def main(control: int) -> None:
    """Fork a process for each socket that comes through `control`; ends with it, or when idle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the server says when it ends
    asked = socket.socket(fileno=control)
    alone = _leave_network()
    _warm()
    size = _size()
    gc.freeze()
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    children = 0
    while True:
        ready = poll.poll(1000 if children else IDLE * 1000)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                children -= 1
        if not ready:
            if children:
                continue
            return
        try:
            message, descriptors, _, _ = socket.recv_fds(asked, 1, 1)
        except OSError:
            break
        if not message:
            break
        with suppress(OSError):  # no process to be had: the server sees the socket closed
            if os.fork() == 0:
                _child(asked, descriptors[0], size, alone)
            children += 1
        for each in descriptors:
            os.close(each)
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _leave_network() -> bool:
    """A network of our own, with nothing in it, where the system lets an ordinary user have one."""
    new_user, new_network = 0x10000000, 0x40000000
    with suppress(AttributeError):
        return bool(_libc.unshare(new_user | new_network) == 0)
    return False


def _warm() -> None:
    """Whatever is loaded at first use is loaded now: later no file can be opened."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    with files.opened(written) as sound:
        json.dumps([repr(sound.probe), [len(each) for each in sound.decode()]])
    for broken in (b"broken", b"RIFF"):
        with suppress(AudioError), files.opened(io.BytesIO(broken)):
            pass
    resampler = Resampler(8000)
    resampler.decode(np.zeros(800, np.float32))
    resampler.flush()


def _size() -> int:
    """Bytes of address space in use; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


# A process.


def _child(asked: socket.socket, descriptor: int, size: int, alone: bool) -> NoReturn:
    """Serve one recording and end, whatever happens."""
    try:
        asked.close()
        os.dup2(descriptor, SOCKET)
        os.closerange(SOCKET + 1, 256)
        there = socket.socket(fileno=SOCKET)
        missing = _confine(size, alone)
        there.sendall(pack("h", {"pid": os.getpid(), "missing": missing}))
        _serve(there)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _serve(there: socket.socket) -> None:
    try:
        if not select.select([there], [], [], IDLE)[0]:
            return  # made in advance, and never needed
        kind, body, descriptors = receive(there, descriptors=1)
        wanted = json.loads(body)
        _limit_time(wanted["limit"])
        if kind == "f":
            with os.fdopen(descriptors[0], "rb") as file:
                _recording(there, file, wanted["limit"])
        elif kind == "l":
            _live(there)
    except (Gone, OSError):  # the server wants no more
        pass
    except AudioError as error:
        there.sendall(pack("x", {"kind": type(error).__name__, "message": error.message}))
    except MemoryError:
        there.sendall(pack("x", {"kind": "Memory", "message": ""}))
    except Exception as error:
        there.sendall(pack("x", {"kind": "Fault", "message": repr(error)[:500]}))


def _recording(there: socket.socket, file: Any, limit: float) -> None:
    """Say what it is, then give as many samples at a time as are asked for; fewer are the end."""
    with files.opened(file) as sound:
        probe = sound.probe
        there.sendall(
            pack(
                "p",
                {
                    "duration": probe.duration,
                    "codec": probe.codec,
                    "rate": probe.rate,
                    "channels": probe.channels,
                },
            )
        )
        chunks = sound.decode(limit)
        rest = np.zeros(0, np.float32)
        while True:
            _, body, _ = receive(there)
            (wanted,) = struct.unpack("<I", body)
            held, have = [rest], len(rest)
            while have < wanted:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                held.append(chunk)
                have += len(chunk)
            joined = np.concatenate(held)
            _samples(there, joined[:wanted])
            rest = joined[wanted:]


def _live(there: socket.socket) -> None:
    fed = _Fed(there)
    fed.run()
    there.sendall(pack("d"))


class _Fed(Container):
    """A container whose bytes come from the server: instead of a thread that waits, this process does."""

    def __init__(self, there: socket.socket) -> None:
        super().__init__()
        self._there = there

    def run(self) -> None:
        """All of it. Raises what is wrong with it."""
        self._work()
        self._pour()
        if self._fault is not None:
            raise self._fault

    def _turn(self) -> None:
        self._pour()
        if not self._hungry:
            return
        self._there.sendall(pack("w"))
        try:
            kind, body, _ = receive(self._there)
        except (Gone, OSError):
            os._exit(0)  # FFmpeg is on the stack, and would only go on
        self._hungry = False
        if kind == "b":
            self._fed += body
        else:
            self._ended = True

    def _pour(self) -> None:
        if self._have:
            samples, self._held, self._have = np.concatenate(self._held), [], 0
            _samples(self._there, samples)


def _samples(there: socket.socket, samples: Samples) -> None:
    there.sendall(HEAD.pack(b"s", 4 * len(samples)))
    there.sendall(np.ascontiguousarray(samples, np.float32).data)


# What a process gives up.


def _confine(size: int, alone: bool) -> list[str]:
    """Give up what decoding needs not; answers what this system does not let us give up.

    Most of it is given up twice, since each of the ways is shut on some systems. `alone` is what `_leave_network` said.
    """
    kill_with_parent, no_new_privileges = 1, 38
    with suppress(AttributeError):
        _libc.prctl(kill_with_parent, signal.SIGKILL, 0, 0, 0)
        _libc.prctl(no_new_privileges, 1, 0, 0, 0)
    limited = _limit(size)
    landlocked = _leave_files()
    if calls.leave(_libc):
        missing = []
    else:
        missing = ["calls"]
        if not landlocked:
            missing.append("files")
        if not alone:
            missing.append("network")
        if _forks():
            missing.append("processes")
    if "AS" not in limited:
        missing.append("memory")
    if resource is None:
        missing.append("time")
    return missing


def _limit(size: int) -> set[str]:
    """The limits that hold."""
    if resource is None:
        return set()
    held = set()
    limits = {
        "CORE": 0,
        "FSIZE": 0,
        "NPROC": 0,
        "NOFILE": RECORDING + 1,
        "AS": size + MEMORY,
    }
    for name, most in limits.items():
        with suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
            held.add(name)
    return held


def _forks() -> bool:
    """Another process can be made. Tried, because a limit of none binds neither root nor who is root outside."""
    try:
        pid = os.fork()
    except OSError:
        return False
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True


def _limit_time(audio: float) -> None:
    """CPU seconds for a recording of at most `audio` seconds; a process that takes more is killed by the system."""
    with suppress(AttributeError, OSError, ValueError):
        most = int(SECONDS[0] + audio / SECONDS[1])
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))


def _leave_files() -> bool:
    """No file, no TCP port and no signal to another process from now on: Landlock with not one rule (Linux 5.13)."""
    if not sys.platform.startswith("linux"):
        return False
    create, restrict = 444, 446  # the same numbers on every architecture
    version = _libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    handled = array.array("Q", [2**bits - 1])
    if version >= 4:
        handled.append(0b11)  # TCP: bind, connect
    if version >= 6:
        handled.append(0b11)  # abstract sockets, signals
    rules = handled.tobytes()
    descriptor: int = _libc.syscall(create, rules, ctypes.c_size_t(len(rules)), 0)
    if descriptor < 0:
        return False
    held: int = _libc.syscall(restrict, descriptor, 0)
    os.close(descriptor)
    return held == 0
