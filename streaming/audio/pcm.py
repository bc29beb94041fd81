"""Samples from the bytes of a live stream, however they are cut. Nothing here resamples."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streaming.errors import AudioError
from streaming.types import Samples

Encoding: TypeAlias = Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]
ENCODINGS: tuple[Encoding, ...] = ("pcm_s16le", "pcm_f32le", "mulaw", "alaw")
WIDTH = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
"""Bytes per sample."""


def _mulaw_table() -> NDArray[np.float32]:
    """ITU-T G.711, µ-law: 8 bits to 14, here as float."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    exponent, mantissa = (code >> 4) & 7, code & 0x0F
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> NDArray[np.float32]:
    """ITU-T G.711, A-law: 8 bits to 13, here as float."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 0x0F
    small = (mantissa << 4) + 8
    magnitude = np.where(exponent == 0, small, (small + 0x100) << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, magnitude, -magnitude) / 32768).astype(np.float32)


_TABLES = {"mulaw": _mulaw_table(), "alaw": _alaw_table()}


class Decoder:
    """Bytes in, mono samples out at the stream's own rate. Where the bytes are cut never changes the samples."""

    def __init__(self, encoding: Encoding, channels: int = 1) -> None:
        self._encoding = encoding
        self._channels = channels
        self.frame = WIDTH[encoding] * channels
        """Bytes of one sample of all channels."""
        self._rest = b""

    def decode(self, chunk: bytes) -> Samples:
        """Samples completed by `chunk`: float32 in [-1, 1], shape ``(n,)``; n may be 0.

        A broken sample at the end waits for the next chunk. Raises AudioError for floats that are not numbers.
        """
        data = self._rest + chunk
        whole = len(data) - len(data) % self.frame
        self._rest = data[whole:]
        samples: Any
        if self._encoding == "pcm_s16le":
            samples = np.frombuffer(data, "<i2", whole // 2).astype(np.float32) / 32768
        elif self._encoding == "pcm_f32le":
            samples = np.frombuffer(data, "<f4", whole // 4).astype(np.float32)
            if not np.isfinite(samples).all():
                raise AudioError("the audio holds samples that are not numbers (NaN or infinite)")
            samples = np.clip(samples, -1.0, 1.0)
        else:
            samples = _TABLES[self._encoding][np.frombuffer(data, np.uint8, whole)]
        if self._channels > 1:
            samples = samples.reshape(-1, self._channels).mean(axis=1, dtype=np.float32)
        mono: Samples = samples
        return mono

    def flush(self) -> Samples:
        """The end: a broken sample is dropped."""
        self._rest = b""
        return np.zeros(0, np.float32)
