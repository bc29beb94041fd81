"""A bounded stretch of a stream's audio, addressed by absolute sample index. Pure; copies in, copies out."""

from __future__ import annotations

import numpy as np

from streaming.types import RATE, Samples


class Timeline:
    """Audio from `start` to `end`; what lies before `start` has been forgotten.

    Memory is what is between the two, rounded up to a power of two, however long the stream is.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        """First sample still held."""
        self.end = start
        """One past the last sample received."""
        self._buffer = np.zeros(RATE, np.float32)
        self._origin = (
            start  # the absolute index of _buffer[0]; start - _origin samples at the front are free
        )

    def append(self, samples: Samples) -> None:
        """Add `samples`, shape ``(n,)``; they are copied."""
        need = self.end - self.start + len(samples)
        if self.end - self._origin + len(samples) > len(self._buffer):
            held = self._buffer[self.start - self._origin : self.end - self._origin]
            # Moving within the same buffer pays off only when half of it is free: amortised, a sample moves once.
            size = len(self._buffer)
            while size < 2 * need:
                size *= 2
            fresh = self._buffer if size == len(self._buffer) else np.zeros(size, np.float32)
            fresh[: len(held)] = held.copy()
            self._buffer, self._origin = fresh, self.start
        at = self.end - self._origin
        self._buffer[at : at + len(samples)] = samples
        self.end += len(samples)

    def read(self, start: int, end: int) -> Samples:
        """A copy of the samples in [start, end), which must be held."""
        if not self.start <= start <= end <= self.end:
            raise IndexError(
                f"samples {start}:{end} are not held; held are {self.start}:{self.end}"
            )
        return self._buffer[start - self._origin : end - self._origin].copy()

    def forget(self, before: int) -> None:
        """Let go of everything before `before`; positions already forgotten are ignored."""
        self.start = min(max(before, self.start), self.end)
        if len(self._buffer) > 16 * RATE and len(self._buffer) > 8 * (self.end - self.start):
            # After a burst the buffer shrinks again, so that thousands of quiet streams stay small.
            held = self.read(self.start, self.end)
            size = RATE
            while size < 2 * len(held):
                size *= 2
            self._buffer, self._origin = np.zeros(size, np.float32), self.start
            self._buffer[: len(held)] = held
