"""PocketSphinx: real general English without a download, of modest accuracy. The recogniser of last resort.

Its binding holds the GIL while it decodes, so it works in child processes; one that dies is replaced and its audio
decoded again. Recordings are decoded whole, with all three passes; live streams step by step, with the first one only.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import queue
import signal
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.backends.base import Capabilities, Decoding, Hypothesis, StepResult, Window
from streaming.errors import BackendError, ModelUnavailable
from streaming.types import RATE, Device, Samples, Word

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

FRAME = RATE // 100
"""Samples of a PocketSphinx frame: 10 ms."""
CAPABILITIES = Capabilities(
    kind="step",
    languages=("en",),
    tasks=("transcribe",),
    longest=30 * RATE,
    full=0,
    max_batch=1,
    context=20
    * RATE,  # its means of the channel need some seconds: a third of the errors of single phrases
)
LIVE = 4
"""Decoders for live streams in one process, 90 MiB each. A stream beyond them is heard at the end of each utterance."""
PATIENCE = 60.0
"""Seconds a window may take before its process is taken for hung."""


class _Child:
    """A process with a decoder for whole windows, or a few for live streams. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.live = 0
        """Utterances that have a decoder here."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._pipe: Connection[Any, Any] = ours
        self._process: BaseProcess = context.Process(
            target=_work, args=(theirs,), name="pocketsphinx", daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(
        self, verb: str, samples: Samples | None = None, which: int = 0
    ) -> list[tuple[str, int, int, float]]:
        """Words as (text, first frame, last frame, probability). Raises EOFError, OSError if the child died."""
        pcm = b"" if samples is None else (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        with self._lock:
            self._pipe.send((verb, which, pcm))
            if not self._pipe.poll(PATIENCE):
                raise EOFError("hung")
            words: list[tuple[str, int, int, float]] = self._pipe.recv()
        return words

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.close()
        self._process.terminate()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


@dataclass(slots=True, eq=False)
class _Utterance:
    """What is heard of a live utterance. Without a child it only gathers, and is decoded whole at its end."""

    child: _Child | None
    number: int
    heard: list[Samples] = field(default_factory=list)  # bounded: utterances are split at 27 s


class PocketSphinx:
    """A WindowBackend and a StepBackend over a few children, one a worker for each of the two."""

    def __init__(self, workers: int) -> None:
        self.capabilities = CAPABILITIES
        self.compute_type = "float32"
        self.memory: int | None = None
        self._idle: queue.SimpleQueue[_Child | None] = queue.SimpleQueue()
        self._closed = False
        self._live: list[_Child] = []
        self._most = workers
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        for _ in range(workers):
            self._idle.put(None)  # started when first needed

    def key(self, window: Window) -> Hashable:
        """Every window alone."""
        return len(window.samples)

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        """See `WindowBackend.decode`."""
        return [self._decode(window) for window in windows]

    def close(self) -> None:
        """End the children; waits for those at work."""
        self._closed = True
        with self._lock:
            live, self._live = self._live, []
        for each in live:
            each.close()
        while True:
            try:
                child = self._idle.get_nowait()
            except queue.Empty:
                return
            if child is not None:
                child.close()

    def open(self, decoding: Decoding) -> _Utterance:
        """See `StepBackend.open`."""
        del decoding
        with self._lock:
            child = min(self._live, key=lambda each: each.live, default=None)
            if (child is None or child.live) and len(self._live) < self._most:
                child = _Child()
                self._live.append(child)
            if child is None or child.live >= LIVE:
                return _Utterance(None, 0)
            child.live += 1
            return _Utterance(child, next(self._numbers))

    def step(self, states: Sequence[_Utterance], chunks: Sequence[Samples]) -> list[StepResult]:
        """See `StepBackend.step`."""
        found = []
        for state, chunk in zip(states, chunks, strict=True):
            state.heard.append(chunk)
            words = self._ask(state, "step", chunk) or []
            length = sum(map(len, state.heard))
            found.append(StepResult(tuple(_placed(words, length))))
        return found

    def finish(self, state: _Utterance) -> Hypothesis:
        """See `StepBackend.finish`."""
        samples = np.concatenate(state.heard) if state.heard else np.zeros(0, np.float32)
        words = self._ask(state, "finish")
        self._release(state)
        if words is None:
            return self._decode(Window(samples))
        return self._hypothesis(Window(samples), words)

    def drop(self, state: _Utterance) -> None:
        """See `StepBackend.drop`."""
        self._ask(state, "drop")
        self._release(state)

    def _ask(
        self, state: _Utterance, verb: str, samples: Samples | None = None
    ) -> list[tuple[str, int, int, float]] | None:
        """The child's answer. If it died, None: the utterance goes on without one."""
        if state.child is None:
            return None
        try:
            return state.child.ask(verb, samples, state.number)
        except (EOFError, OSError):
            with self._lock:
                if state.child in self._live:  # its other utterances find out by themselves
                    self._live.remove(state.child)
                    state.child.close()
            state.child = None
            return None

    def _release(self, state: _Utterance) -> None:
        with self._lock:
            if state.child is not None:
                state.child.live -= 1
                state.child = None

    def _decode(self, window: Window) -> Hypothesis:
        if len(window.samples) < RATE // 10:
            return Hypothesis("", language="en", no_speech=1.0)
        child = self._idle.get()
        try:
            for attempt in range(2):
                child = child or _Child()
                try:
                    return self._hypothesis(window, child.ask("decode", window.samples))
                except (EOFError, OSError) as error:
                    child.close()
                    child = None
                    if attempt:
                        raise BackendError(
                            "the PocketSphinx process died twice on this audio; see the server's log"
                        ) from error
        finally:
            if self._closed and child is not None:
                child.close()
            else:
                self._idle.put(child)
        raise AssertionError("one of two attempts returns or raises")

    def _hypothesis(self, window: Window, found: list[tuple[str, int, int, float]]) -> Hypothesis:
        length = len(window.samples)
        prefix = window.decoding.prefix
        edge = prefix[-1].end if prefix else 0
        # What was said before and is held to is not said twice.
        rest = [word for word in _placed(found, length) if (word.start + word.end) // 2 >= edge]
        words = [*prefix, *rest]
        return Hypothesis(
            "".join(word.text for word in words),
            tuple(words),
            language="en",
            no_speech=0.0 if words else 1.0,
            temperature=window.decoding.temperature,
        )


def _placed(found: list[tuple[str, int, int, float]], length: int) -> list[Word]:
    """Words in samples from what a child said of `length` samples."""
    return [
        Word(" " + text, min(first * FRAME, length), min((last + 1) * FRAME, length), probability)
        for text, first, last, probability in found
    ]


class _Loader:
    name = "pocketsphinx"

    def inspect(self, path: Path) -> Capabilities | None:
        """Carries its own model; `path` does not matter."""
        del path
        return CAPABILITIES if find_spec("pocketsphinx") is not None else None

    def key(self, window: Window) -> Hashable:
        """See `Loader.key`."""
        return len(window.samples)

    def load(self, path: Path, device: Device) -> PocketSphinx:
        """See `Loader.load`."""
        if find_spec("pocketsphinx") is None:
            raise ModelUnavailable("pocketsphinx is not installed; pip install pocketsphinx")
        del path
        return PocketSphinx(device.workers)


LOADER = _Loader()


def _work(pipe: Connection[Any, Any]) -> None:
    """The child: commands in, words out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent may ignore it, but ends us by it
    from pocketsphinx import Decoder

    whole: Any = None
    live: dict[int, Any] = {}
    spare: list[Any] = []  # a decoder takes a second to make
    while True:
        try:
            verb, which, pcm = pipe.recv()
        except (EOFError, OSError):
            return
        if verb == "decode":
            whole = whole or Decoder(
                loglevel="FATAL", fwdflat=True, bestpath=True, cmn="batch", samprate=RATE
            )
            whole.reinit_feat()  # or its estimates of the last speaker's level and noise would colour this text
            whole.start_utt()
            whole.process_raw(pcm, full_utt=True)
            whole.end_utt()
            pipe.send(_words(whole))
            continue
        if which not in live and verb == "step":
            live[which] = (
                spare.pop()
                if spare
                else Decoder(
                    loglevel="FATAL", fwdflat=False, bestpath=False, cmn="live", samprate=RATE
                )
            )
            live[which].start_utt()
        decoder = live.get(which)
        if decoder is not None and pcm:
            decoder.process_raw(pcm)
        if decoder is not None and verb in ("finish", "drop"):
            decoder.end_utt()
            spare.append(live.pop(which))
        pipe.send([] if decoder is None or verb == "drop" else _words(decoder))


def _words(decoder: Any) -> list[tuple[str, int, int, float]]:
    math = decoder.get_logmath()
    words = []
    for segment in decoder.seg() or ():
        text = segment.word.partition("(")[0]
        if text and text[0] not in "<[+":
            probability = min(1.0, max(0.0, math.exp(segment.prob)))
            words.append((text, segment.start_frame, segment.end_frame, probability))
    return words
