"""Messages between the server and a runner process: msgpack, and audio as it lies in memory, over a socket pair.

A frame is two lengths (bytes of message and of audio, big-endian, 32 bit), the message, the audio.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import msgspec
import numpy as np

from streaming.backends.base import Capabilities, Decoding, Hypothesis, StepResult
from streaming.types import Device, Samples

_LENGTHS = struct.Struct("!II")
BUFFER = 2**20
"""Bytes of a message that the kernel is asked to hold. It allows `net.core.wmem_max`, 212,992 on most systems: of a
window of 30 s, which has 1.9 MB, most waits until the other end reads."""

ANSWER = 16 * 2**20
"""Bytes of an answer at most: a thousand times what a full window's words take."""

Watch: TypeAlias = Callable[[Callable[[float], bool]], None]
"""Called where the other end has to be waited for, with what waits so many seconds and says whether it is ready:
returns when it is, or raises what the caller of `Channel` is to get."""


class Load(msgspec.Struct, tag=True):
    """The first message: what the process is to be."""

    module: str
    """Holds the backend's `LOADER`."""
    model: str
    path: str
    device: Device


class Loaded(msgspec.Struct, tag=True):
    """The model is in memory."""

    capabilities: Capabilities
    compute_type: str
    memory: int | None
    steps: bool
    """It is a StepBackend, too: `decode` is always answered."""


class Ping(msgspec.Struct, tag=True):
    """Are you there?"""


class Decode(msgspec.Struct, tag=True):
    """Windows of one key; their samples follow each other in the audio."""

    decodings: list[Decoding]
    lengths: list[int]


class OpenState(msgspec.Struct, tag=True):
    """A fresh state of a step recogniser."""

    decoding: Decoding


class StepStates(msgspec.Struct, tag=True):
    """The next chunk of each state."""

    states: list[int]
    lengths: list[int]


class FinishState(msgspec.Struct, tag=True):
    """The final text of a state."""

    state: int


class DropState(msgspec.Struct, tag=True):
    """Free a state."""

    state: int


class Decoded(msgspec.Struct, tag=True):
    """Of `Decode` and `FinishState`."""

    hypotheses: list[Hypothesis]


class Stepped(msgspec.Struct, tag=True):
    """Of `StepStates`."""

    results: list[StepResult]


class Opened(msgspec.Struct, tag=True):
    """Of `OpenState`."""

    state: int


class Done(msgspec.Struct, tag=True):
    """Of everything else."""


class Failure(msgspec.Struct, tag=True):
    """What was asked failed; the process goes on unless `fatal`."""

    kind: str
    """Class of `streaming.errors`."""
    message: str
    param: str | None = None
    fatal: bool = False
    """The process cannot be trusted any more, and ends."""


Request: TypeAlias = Load | Ping | Decode | OpenState | StepStates | FinishState | DropState
Reply: TypeAlias = Loaded | Decoded | Stepped | Opened | Done | Failure

_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class Broken(Exception):
    """The other end is gone."""


class Garbled(Exception):
    """What came is no message."""


class Channel:
    """One end; a question and an answer at a time. Blocking; not for two threads at once."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)

    def send(
        self,
        message: Request | Reply,
        audio: Sequence[Samples] = (),
        watch: Watch | None = None,
    ) -> None:
        """Waits for the other end as `watch` does, else for ever. Raises Broken."""
        body = _ENCODER.encode(message)
        pieces = [np.ascontiguousarray(each, np.float32) for each in audio]
        size = sum(piece.nbytes for piece in pieces)
        self._give(_LENGTHS.pack(len(body), size) + body, watch)
        for piece in pieces:
            self._give(piece.view(np.uint8).data, watch)

    def request(self) -> tuple[Request, Samples]:
        """The runner's side: the next question with its audio, one after the other. Raises Broken."""
        body, audio = self._receive()
        return _REQUESTS.decode(body), np.frombuffer(audio, np.float32)

    def reply(self, watch: Watch | None = None) -> Reply:
        """The server's side: the answer, waited for as `watch` does. Raises Broken, Garbled."""
        # What decodes strangers' audio may have been taken over by it: it is believed nothing.
        body, _ = self._receive(watch, ANSWER)
        try:
            return _REPLIES.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Garbled(str(error)) from error

    def until_gone(self) -> None:
        """Returns once either end is closed; what comes meanwhile is left to whoever asked for it."""
        with suppress(OSError, ValueError):
            waiting = select.poll()
            waiting.register(self._end, 0)  # a hang-up is told in any case
            waiting.poll()

    def close(self) -> None:
        """The other end reads Broken, and so does a thread that waits on this one."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _receive(
        self, watch: Watch | None = None, most: int | None = None
    ) -> tuple[bytearray, bytearray]:
        head = self._take(_LENGTHS.size, watch)
        length, size = _LENGTHS.unpack(head)
        if most is not None and length + size > most:
            raise Garbled(f"{length + size} bytes are announced; an answer has {most} at most")
        return self._take(length, watch), self._take(size, watch)

    def _give(self, data: bytes | memoryview, watch: Watch | None) -> None:
        """All of `data`."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._end.send(view, _flags(watch)) :]
            except BlockingIOError:
                assert watch is not None
                watch(lambda seconds: self._ready(select.POLLOUT, seconds))
            except OSError as error:
                raise Broken from error

    def _take(self, size: int, watch: Watch | None) -> bytearray:
        """Exactly `size` bytes."""
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = self._end.recv_into(view, 0, _flags(watch))
            except BlockingIOError:
                assert watch is not None
                watch(lambda seconds: self._ready(select.POLLIN, seconds))
                continue
            except OSError as error:
                raise Broken from error
            if not count:
                raise Broken
            view = view[count:]
        return data

    def _ready(self, event: int, seconds: float) -> bool:
        """Bytes can be moved, or the other end is gone, within `seconds`."""
        try:
            # poll, not select: a busy server has descriptors beyond 1024
            waiting = select.poll()
            waiting.register(self._end, event)
            return bool(waiting.poll(seconds * 1000))
        except (OSError, ValueError):
            return True


def _flags(watch: Watch | None) -> int:
    return 0 if watch is None else socket.MSG_DONTWAIT
