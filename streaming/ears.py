"""The detector at work for all live streams: one call a tick, on one thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streaming.errors import BackendError, OpenSpeechError
from streaming.types import Samples
from streaming.vad.detector import Detector

log = logging.getLogger(__name__)


class Ear(Protocol):
    """A stream as the detector sees it."""

    def frames(self) -> Samples:
        """Frames to judge, shape ``(k * 512,)``; k may be 0."""
        ...

    def receive_probabilities(self, frames: Samples, probabilities: NDArray[np.float32]) -> None:
        """What the detector said of them."""
        ...


Fail = Callable[[OpenSpeechError], None]

GATHER = 0.016
"""Seconds that frames gather at most before a call: half a frame. One call for many streams costs a third of many."""
CROWD = 16
"""Streams in a call from which on gathering pays in full; one stream alone waits a sixteenth of it."""


LOST = "this stream cannot go on; open a new one, and see the server's log"


class Ears:
    """While a call runs, the next frames of every stream gather; so load makes calls wider, not more frequent."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._waiting: dict[
            Ear, tuple[object, Callable[[], None], Fail]
        ] = {}  # bounded by open streams
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ears")
        self._task: asyncio.Task[None] | None = None
        self._width = 0  # streams in the last call

    def listen(self, ear: Ear, state: object, heard: Callable[[], None], fail: Fail) -> None:
        """`ear` has frames; `heard` is called, on the loop, after it got their probabilities; `fail` if it cannot."""
        self._waiting[ear] = state, heard, fail
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tick())

    def forget(self, ear: Ear) -> None:
        """The stream is gone."""
        self._waiting.pop(ear, None)

    async def aclose(self) -> None:
        """Stop listening."""
        self._waiting.clear()
        if self._task is not None:
            await self._task
        self._pool.shutdown()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if self._width > 1:
                    await asyncio.sleep(GATHER * min(self._width, CROWD) / CROWD)
                ears, self._waiting = self._waiting, {}
                batch = [(ear, *rest, ear.frames()) for ear, rest in ears.items()]
                batch = [row for row in batch if len(row[4])]
                if not batch:
                    continue
                self._width = max(len(batch), self._width // 2)
                states, frames = [row[1] for row in batch], [row[4] for row in batch]
                try:
                    found = await loop.run_in_executor(
                        self._pool, self._detector.detect, states, frames
                    )
                except Exception:
                    log.exception("detecting speech in %d streams failed", len(batch))
                    for row in batch:
                        row[3](BackendError(LOST))
                    continue
                for (ear, _, heard, fail, asked), probabilities in zip(batch, found, strict=True):
                    try:
                        ear.receive_probabilities(asked, probabilities)
                        heard()
                    except Exception:  # its own fault: the others of the call go on
                        log.exception("a stream could not go on")
                        fail(BackendError(LOST))
        finally:
            self._task = None
