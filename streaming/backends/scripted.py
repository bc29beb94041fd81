"""A recogniser without a model, for tests and load experiments: it reads words that were written into the samples.

A stretch of constant level ``(k + 1) / 64`` is the word ``w<k>``; silence separates words. The same samples always give
the same words, so loss, doubling and reordering become exact comparisons. Nothing it does resembles speech.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streaming.backends.base import Capabilities, Hypothesis, Window
from streaming.types import RATE, Device, Samples, Token, Word

LEVELS = 64
"""Words it knows: w0 … w62."""


def spell(word: int, seconds: float) -> Samples:
    """Samples that read as ``w<word>`` for `seconds`."""
    return np.full(round(seconds * RATE), (word + 1) / LEVELS, np.float32)


CAPABILITIES = Capabilities(
    languages=("en", "fr"),
    tasks=("transcribe", "translate"),
    detects_language=True,
    max_batch=8,
    full=0,
)


@dataclass(slots=True)
class ScriptedBackend:
    """A WindowBackend."""

    capabilities: Capabilities = CAPABILITIES
    compute_type: str = "none"
    memory: int | None = 0

    def key(self, window: Window) -> Hashable:
        """All windows are alike, but for the temperature."""
        return window.decoding.temperature

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        """Read the words."""
        return [self._read(window) for window in windows]

    def close(self) -> None:
        """Nothing to free."""

    def _read(self, window: Window) -> Hypothesis:
        decoding = window.decoding
        words = read(window.samples) if decoding.task != "detect" else ()
        text = "".join(word.text for word in words)
        raw = text.encode()
        tokens = tuple(Token(word.text.encode(), -0.01, word.tokens[0]) for word in words)
        return Hypothesis(
            text,
            words if decoding.align else (),
            tokens if decoding.align else (),
            decoding.language or "en",
            None if decoding.language else 1.0,
            log_probability=-0.01,
            no_speech=0.0 if words else 0.9,
            compression_ratio=min(2.0, len(raw) / len(zlib.compress(raw))) if raw else 1.0,
            temperature=decoding.temperature,
        )


def read(samples: Samples) -> tuple[Word, ...]:
    """The words spelt in `samples`: runs of one level of at least 20 ms, tolerant of resampling and 16-bit rounding."""
    levels = np.rint(samples * LEVELS).astype(int)
    steady = np.abs(samples * LEVELS - levels) < 0.2
    levels[~steady] = -1
    edges = np.flatnonzero(np.diff(levels)) + 1
    bounds = [0, *edges.tolist(), len(levels)]
    words: list[Word] = []
    for start, end in itertools.pairwise(bounds):
        level = int(levels[start]) if end > start else 0
        if level < 1 or end - start < RATE // 50:
            continue
        if words and words[-1].tokens == (level,) and start - words[-1].end < RATE // 50:
            continue
        words.append(Word(f" w{level - 1}", start, end, 0.99, (level,)))
    return tuple(words)


class _Loader:
    name = "scripted"

    def inspect(self, path: Path) -> Capabilities | None:
        """Serves a folder that holds a file called ``scripted``."""
        return CAPABILITIES if (path / "scripted").is_file() else None

    def load(self, path: Path, device: Device) -> ScriptedBackend:
        """Needs nothing."""
        del path, device
        return ScriptedBackend()


LOADER = _Loader()
