"""A process that holds one model and decodes for the server: ``python -m streaming.runner FD …``.

The first descriptor is for control: the model to load, then pings. Each other one serves decodes, one at a time, on a
thread of its own. The process ends with its control channel, whatever else goes on: it never outlives the server.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from streaming.backends.base import Loader, StepBackend, Window, WindowBackend
from streaming.backends.stepwise import whole
from streaming.channel import (
    Broken,
    Channel,
    Decode,
    Decoded,
    Done,
    DropState,
    Failure,
    FinishState,
    Load,
    Loaded,
    Opened,
    OpenState,
    Ping,
    Reply,
    Request,
    Stepped,
    StepStates,
)
from streaming.errors import BackendError, ModelUnavailable, OpenSpeechError
from streaming.types import Samples

log = logging.getLogger("streaming.runner")

FATAL = ("unspecified launch failure", "illegal memory access", "device-side assert", "misaligned")
"""What CUDA says when nothing works any more in this process (faster-whisper issue 660)."""


class _Runner:
    """The model, and the states of a step recogniser."""

    def __init__(self, backend: WindowBackend | StepBackend) -> None:
        self._backend: Any = backend
        self._whole = whole(backend)
        self._numbers = count()
        self._states: dict[int, Any] = {}  # bounded: one an utterance that is being heard

    def answer(self, request: Request, audio: Samples) -> Reply:
        """Do what is asked."""
        match request:
            case Decode(decodings, lengths):
                windows = [
                    Window(samples, decoding)
                    for samples, decoding in zip(_split(audio, lengths), decodings, strict=True)
                ]
                return Decoded(self._whole.decode(windows))
            case OpenState(decoding):
                number = next(self._numbers)
                self._states[number] = self._backend.open(decoding)
                return Opened(number)
            case StepStates(states, lengths):
                asked = [self._states[each] for each in states]
                return Stepped(self._backend.step(asked, _split(audio, lengths)))
            case FinishState(state):
                return Decoded([self._backend.finish(self._states.pop(state))])
            case DropState(state):
                self._backend.drop(self._states.pop(state))
                return Done()
            case _:
                return Done()


def _split(audio: Samples, lengths: list[int]) -> list[Samples]:
    bounds = np.cumsum([0, *lengths]).tolist()
    return [audio[start:end] for start, end in pairwise(bounds)]


def _load(request: Load) -> tuple[Loaded, WindowBackend | StepBackend]:
    loader: Loader = importlib.import_module(request.module).LOADER
    backend = loader.load(Path(request.path), request.device)
    if request.device.kind == "cuda":
        from streaming import selftest

        selftest.check(whole(backend), request.model)
    loaded = Loaded(
        backend.capabilities,
        backend.compute_type,
        backend.memory,
        isinstance(backend, StepBackend),
    )
    return loaded, backend


def _failure(error: Exception, otherwise: type[OpenSpeechError]) -> Failure:
    """What the server is told; what nobody foresaw goes to the log in full."""
    text = str(error)
    fatal = any(each in text.lower() for each in FATAL)
    if isinstance(error, OpenSpeechError):
        return Failure(type(error).__name__, error.message, error.param, fatal)
    log.error("a call failed", exc_info=error)
    if isinstance(error, MemoryError):
        text = "the machine has too little free memory for this; unload other models or choose a smaller one"
        return Failure(otherwise.__name__, text)
    if otherwise is ModelUnavailable:
        return Failure(otherwise.__name__, f"it cannot be loaded: {text or type(error).__name__}")
    text = "the recogniser failed on this audio; try again, and see the server's log"
    return Failure(otherwise.__name__, text, fatal=fatal)


def _serve(channel: Channel, answer: Callable[[Request, Samples], Reply]) -> None:
    """Answer until the other end is gone. Whatever else goes wrong here ends the process: the server replaces it."""
    try:
        while True:
            request, audio = channel.request()
            try:
                reply = answer(request, audio)
            except Exception as error:
                reply = _failure(error, BackendError)
            del request, audio
            channel.send(reply)
            if isinstance(reply, Failure) and reply.fatal:
                os._exit(70)
    except Broken:
        return
    except BaseException:
        log.exception("a channel cannot go on")
        os._exit(70)


def main(descriptors: list[int]) -> None:
    """The process."""
    # A Ctrl-C, or a service manager that stops the whole group, is the server's affair: it drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    control, *others = (Channel(socket.socket(fileno=each)) for each in descriptors)
    backend = None
    try:
        request, _ = control.request()
        assert isinstance(request, Load)
        try:
            loaded, backend = _load(request)
        except Exception as error:
            control.send(_failure(error, ModelUnavailable))
            return
        runner = _Runner(backend)
        for channel in others:
            threading.Thread(target=_serve, args=(channel, runner.answer), daemon=True).start()
        control.send(loaded)
        while True:
            request, _ = control.request()
            assert isinstance(request, Ping)
            control.send(Done())
    except Broken:
        pass
    finally:
        if backend is not None:
            backend.close()
        sys.stderr.flush()
        os._exit(0)  # threads may be in the middle of a decode


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]])
