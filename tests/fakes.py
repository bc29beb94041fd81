"""The vocabulary of the tests: audio by construction, the fixture's recordings, a detector without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jiwer
import numpy as np
from numpy.typing import NDArray

from streaming.audio import files
from streaming.types import RATE, Samples
from tests.drive import loudness

SPEECH = Path(__file__).parent / "data" / "speech"


@dataclass(frozen=True)
class Line:
    """A recording of the fixture with what is said in it."""

    path: Path
    language: str
    text: str
    translation: str
    words: tuple[tuple[str, float, float], ...]

    @property
    def samples(self) -> Samples:
        return speech(self.path.name)


@cache
def lines() -> tuple[Line, ...]:
    """The fixture: 24 sentences, then one recording of 80 s."""
    rows = [json.loads(row) for row in (SPEECH / "speech.jsonl").read_text("utf-8").splitlines()]
    return tuple(
        Line(
            SPEECH / row["file"],
            row["language"],
            row["text"],
            row.get("translation", ""),
            tuple(tuple(word) for word in row["words"]),
        )
        for row in rows
    )


@cache
def speech(name: str) -> Samples:
    """A recording of the fixture."""
    return np.concatenate(list(files.decode(SPEECH / name)))


def tone(seconds: float, hertz: float = 440.0, level: float = 0.3, rate: int = RATE) -> Samples:
    """A sine."""
    at = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * at)).astype(np.float32)


def silence(seconds: float) -> Samples:
    """Zeros."""
    return np.zeros(round(seconds * RATE), np.float32)


def noise(seconds: float, level: float = 0.01, seed: int = 0) -> Samples:
    """White noise."""
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * level).astype(
        np.float32
    )


def pcm(samples: Samples) -> bytes:
    """16-bit little-endian."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def wav(samples: Samples, rate: int = RATE, channels: int = 1) -> bytes:
    """A WAV file of `samples`, the same on each channel."""
    import io
    import wave

    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm(np.repeat(samples, channels)))
    return out.getvalue()


class Loudness:
    """A Detector: speech is what is not silent."""

    def open(self) -> None:
        return None

    def detect(
        self, states: Sequence[None], frames: Sequence[Samples]
    ) -> list[NDArray[np.float32]]:
        del states
        return [loudness(each) for each in frames]


_PLAIN = jiwer.Compose(
    [jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()]
)


def word_errors(truth: str, heard: str) -> int:
    """Words substituted, missing or too many."""
    found = jiwer.process_words(_PLAIN(truth), _PLAIN(heard) or "∅")
    return found.substitutions + found.deletions + found.insertions


def word_count(text: str) -> int:
    return len(_PLAIN(text).split())
