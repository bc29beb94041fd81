"""A decoded frame of PyAV as our samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.errors import AudioError
from streaming.types import Samples

RATES = 4_000, 768_000
CHANNELS = 16
STRAY = 0.01
"""Share of a frame's samples that may be no numbers and become silence; beyond it the file is damaged."""


def check(rate: int, channels: int) -> None:
    """Raises AudioError for a shape that no sane recording has; a resampler would take it and run out of memory."""
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            f"the audio's sample rate is {rate}; it must lie between {RATES[0]} and {RATES[1]} Hz"
        )
    if not 1 <= channels <= CHANNELS:
        raise AudioError(f"the audio has {channels} channels; at most {CHANNELS} are mixed down")


def mono(frame: Any) -> Samples:
    """The mean of a frame's channels, shape ``(n,)``, in [-1, 1]."""
    data: NDArray[Any] = frame.to_ndarray()
    samples: NDArray[Any]
    channels = len(frame.layout.channels)
    if not frame.format.is_planar:
        data = data.reshape(-1, channels).T
    if data.dtype == np.uint8:
        samples = (data.astype(np.float32) - 128) / 128
    elif np.issubdtype(data.dtype, np.signedinteger):
        samples = data.astype(np.float32) / float(-int(np.iinfo(data.dtype).min))
    else:
        with np.errstate(over="ignore"):  # a double too large for a float is infinite, and clipped
            samples = data.astype(np.float32)
        strange = np.isnan(samples)
        if strange.any():
            if strange.mean() > STRAY:
                raise AudioError(
                    "the recording's samples are not numbers (NaN); write the file again"
                )
            samples[strange] = 0
        np.clip(samples, -1, 1, out=samples)
    mixed: Samples = samples[0] if channels == 1 else samples.mean(axis=0, dtype=np.float32)
    return mixed
