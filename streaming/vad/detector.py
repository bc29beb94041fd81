"""What tells speech from silence, as the engine sees it: many streams in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streaming.types import Samples

FRAME = 512
"""Samples per probability: 32 ms at 16 kHz."""


class Detector(Protocol):
    """Called from one thread at a time; several may share the loaded model."""

    def open(self) -> Any:
        """The state of a fresh stream; its type is the detector's own."""
        ...

    def detect(self, states: Sequence[Any], frames: Sequence[Samples]) -> list[NDArray[np.float32]]:
        """Speech probabilities in [0, 1] of each stream's next frames.

        ``frames[i]``, shape ``(k_i * 512,)``, continues what ``states[i]`` heard; its answer has shape ``(k_i,)``. The
        result of a stream never depends on the others.
        """
        ...
