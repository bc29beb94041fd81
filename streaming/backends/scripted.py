"""A recogniser without a model, for tests and load experiments: it reads words that were written into the samples.

A stretch of constant level ``(k + 1) / 64`` is the word ``w<k>``; silence separates words. The same samples always give
the same words, so loss, doubling and reordering become exact comparisons. Nothing it does resembles speech.
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from streaming.backends.base import Capabilities, Decoding, Hypothesis, StepResult, Window
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


STEPS = replace(CAPABILITIES, kind="step", chunk=RATE * 8 // 25, max_batch=64)
"""The same as a step recogniser that hears 320 ms at a time and takes nothing back."""


@dataclass(slots=True)
class ScriptedBackend:
    """A WindowBackend."""

    capabilities: Capabilities = CAPABILITIES
    compute_type: str = "none"
    memory: int | None = 0
    cost: float = 0.0
    """Seconds that a window takes."""

    def key(self, window: Window) -> Hashable:
        """All windows are alike, but for the temperature."""
        return window.decoding.temperature

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        """Read the words."""
        time.sleep(self.cost * len(windows))
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


@dataclass(slots=True, eq=False)
class _Heard:
    samples: Samples
    decoding: Decoding


@dataclass(slots=True)
class ScriptedSteps:
    """A StepBackend: many streams of any age in one call."""

    capabilities: Capabilities = STEPS
    compute_type: str = "none"
    memory: int | None = 0
    calls: list[int] = field(default_factory=list)
    """Streams in each call of `step`."""
    open_states: int = 0

    def open(self, decoding: Decoding) -> _Heard:
        """Nothing heard yet."""
        self.open_states += 1
        return _Heard(np.zeros(0, np.float32), decoding)

    def step(self, states: Sequence[_Heard], chunks: Sequence[Samples]) -> list[StepResult]:
        """Words are stable once something follows them."""
        self.calls.append(len(states))
        found = []
        for state, chunk in zip(states, chunks, strict=True):
            if len(chunk) != self.capabilities.chunk:
                raise ValueError(f"a chunk of {len(chunk)} samples")
            state.samples = np.concatenate([state.samples, chunk])
            words = read(state.samples)
            done = sum(word.end < len(state.samples) for word in words)
            found.append(StepResult(words, done))
        return found

    def finish(self, state: _Heard) -> Hypothesis:
        """All of it."""
        self.open_states -= 1
        return ScriptedBackend()._read(Window(state.samples, replace(state.decoding, align=True)))

    def drop(self, state: _Heard) -> None:
        """Nothing is kept."""
        del state
        self.open_states -= 1

    def close(self) -> None:
        """Nothing to free."""


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
        """Serves a folder that holds a file called ``scripted``; one that says ``steps`` is for streaming, one that is
        a number takes so many seconds for a window."""
        if not (path / "scripted").is_file():
            return None
        return STEPS if _told(path) == "steps" else CAPABILITIES

    def key(self, window: Window) -> Hashable:
        """See `Loader.key`."""
        return window.decoding.temperature

    def load(self, path: Path, device: Device) -> ScriptedBackend | ScriptedSteps:
        """Needs nothing."""
        del device
        told = _told(path)
        return ScriptedSteps() if told == "steps" else ScriptedBackend(cost=float(told or 0))


def _told(path: Path) -> str:
    return (path / "scripted").read_text("utf-8").strip()


LOADER = _Loader()
