"""Any rate to 16 kHz, piece by piece, with the same result however the audio is cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from streaming.types import RATE, Samples

BLOCK = 10
"""Milliseconds fed to soxr at a time: always the same, so that its internal blocking cannot depend on messages."""


class Resampler:
    """Samples at `rate` in, samples at 16 kHz out."""

    def __init__(self, rate: int) -> None:
        self._stream: Any = None
        if rate != RATE:
            import soxr

            self._stream = soxr.ResampleStream(rate, RATE, 1, "float32")
        self._block = max(1, rate * BLOCK // 1000)
        self._rest: Samples = np.zeros(0, np.float32)

    def decode(self, samples: Samples) -> Samples:
        """What `samples`, shape ``(n,)``, completes; may be empty."""
        if self._stream is None:
            return samples
        data = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(data) - len(data) % self._block
        self._rest = data[whole:].copy()
        return _joined(
            self._stream.resample_chunk(data[at : at + self._block])
            for at in range(0, whole, self._block)
        )

    def flush(self) -> Samples:
        """The end: what the filter still holds."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest, self._rest = self._rest, np.zeros(0, np.float32)
        flushed: Samples = self._stream.resample_chunk(rest, last=True)
        return flushed


def _joined(parts: Any) -> Samples:
    found = list(parts)
    joined: Samples = np.concatenate(found) if found else np.zeros(0, np.float32)
    return joined
