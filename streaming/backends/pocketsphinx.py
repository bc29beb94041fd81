"""PocketSphinx: real general English without a download, of modest accuracy. The recogniser of last resort.

Its binding holds the GIL while it decodes, so it works in child processes; one that dies is replaced and its window
decoded again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
from collections.abc import Hashable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streaming.backends.base import Capabilities, Hypothesis, Window
from streaming.errors import BackendError, ModelUnavailable
from streaming.types import RATE, Device, Samples, Word

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

FRAME = RATE // 100
"""Samples of a PocketSphinx frame: 10 ms."""
CAPABILITIES = Capabilities(
    kind="window", languages=("en",), tasks=("transcribe",), longest=30 * RATE, full=0, max_batch=1
)
PATIENCE = 60.0
"""Seconds a window may take before its process is taken for hung."""


class _Child:
    """A process with one decoder."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._pipe: Connection[Any, Any] = ours
        self._process: BaseProcess = context.Process(
            target=_work, args=(theirs,), name="pocketsphinx", daemon=True
        )
        self._process.start()
        theirs.close()

    def decode(self, samples: Samples) -> list[tuple[str, int, int, float]]:
        """Words as (text, first frame, last frame, probability). Raises EOFError, OSError if the child died."""
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        self._pipe.send_bytes(pcm)
        if not self._pipe.poll(PATIENCE):
            self.close()
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


class PocketSphinx:
    """A WindowBackend over a few children, one a worker."""

    def __init__(self, workers: int) -> None:
        self.capabilities = CAPABILITIES
        self.compute_type = "float32"
        self.memory: int | None = None
        self._idle: queue.SimpleQueue[_Child | None] = queue.SimpleQueue()
        self._closed = False
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
        while True:
            try:
                child = self._idle.get_nowait()
            except queue.Empty:
                return
            if child is not None:
                child.close()

    def _decode(self, window: Window) -> Hypothesis:
        if len(window.samples) < RATE // 10:
            return Hypothesis("", language="en", no_speech=1.0)
        child = self._idle.get()
        try:
            for attempt in range(2):
                child = child or _Child()
                try:
                    return self._hypothesis(window, child.decode(window.samples))
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
        words = list(prefix)
        for text, first, last, probability in found:
            start, end = min(first * FRAME, length), min((last + 1) * FRAME, length)
            if prefix and (start + end) // 2 < edge:
                continue  # said before, and held to it
            words.append(Word(" " + text, start, end, probability))
        return Hypothesis(
            "".join(word.text for word in words),
            tuple(words),
            language="en",
            no_speech=0.0 if words else 1.0,
            temperature=window.decoding.temperature,
        )


class _Loader:
    name = "pocketsphinx"

    def inspect(self, path: Path) -> Capabilities | None:
        """Carries its own model; `path` does not matter."""
        del path
        return CAPABILITIES if find_spec("pocketsphinx") is not None else None

    def load(self, path: Path, device: Device) -> PocketSphinx:
        """See `Loader.load`."""
        if find_spec("pocketsphinx") is None:
            raise ModelUnavailable("pocketsphinx is not installed; pip install pocketsphinx")
        del path
        return PocketSphinx(device.workers)


LOADER = _Loader()


def _work(pipe: Connection[Any, Any]) -> None:
    """The child: PCM in, words out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's affair
    from pocketsphinx import Decoder

    decoder = Decoder(loglevel="FATAL", fwdflat=True, bestpath=True, cmn="batch", samprate=RATE)
    math = decoder.get_logmath()
    while True:
        try:
            pcm = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        decoder.start_utt()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        words = []
        for segment in decoder.seg() or ():
            text = segment.word.partition("(")[0]
            if text and text[0] not in "<[+":
                probability = min(1.0, max(0.0, math.exp(segment.prob)))
                words.append((text, segment.start_frame, segment.end_frame, probability))
        pipe.send(words)
