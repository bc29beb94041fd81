"""What a recogniser looks like to the engine, and what it says about itself.

A backend is one file with a `LOADER`, named by an entry point of the group ``open_speech.backends``. The engine calls
`decode`, `open`, `step`, `finish` and `close` from its worker threads only, never two at a time for one worker, but up
to `Device.workers` at once for one backend: a backend whose library cannot do that takes a lock of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from streaming.types import RATE, Device, Samples, Task, Token, Word, Work


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model can do. A value, so that nobody has to try."""

    kind: Literal["window", "step"] = "window"
    languages: tuple[str, ...] = ("en",)
    """ISO-639 codes it was trained on, most used first."""
    tasks: tuple[Task, ...] = ("transcribe",)
    detects_language: bool = False
    word_times: bool = True
    longest: int = 30 * RATE
    """Samples of the longest window."""
    full: int = 30 * RATE
    """Samples of the window it was trained on; 0 where there is no padding."""
    context: int = 0
    """Samples of neighbouring utterances, the pauses between them included, that it wants to hear together in
    recordings, where it has no padding to fill; 0 hears each alone."""
    max_batch: int = 1
    chunk: int = 0
    """Step recognisers: samples of every step; 0 takes any number."""
    commit_hold_back: int = RATE // 2
    """Samples before the edge within which words are not committed while somebody speaks."""
    display_hold_back: int = RATE // 10
    """Samples before the edge within which words are not shown."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a window is to be decoded."""

    task: Task = "transcribe"
    language: str | None = None
    """None detects within `languages` (empty: all) and decodes in what was found."""
    languages: tuple[str, ...] = ()
    prompt: str = ""
    """Goes before the text, cut on the left to what the model takes."""
    context: tuple[Word, ...] = ()
    """What was said just before the window; follows the prompt, with which it shares that room."""
    hotwords: tuple[str, ...] = ()
    prefix: tuple[Word, ...] = ()
    """Words the text must begin with; they come back as the first words."""
    beam: int = 1
    temperature: float = 0.0
    align: bool = False
    """Word times are wanted."""
    anchored: bool = False
    """Decode with timestamp tokens, where the recogniser has any: they keep its place in a window of many sentences."""
    floor: int = 0
    """Samples (silence appended) a padded recogniser's window has at least; 30 s is a full Whisper window. The
    recogniser adds the tail it needs and rounds up to its buckets."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a step recogniser hears next of an utterance."""

    samples: Samples
    """Follow those of the step before; read only, valid until the step returns."""
    decoding: Decoding = Decoding()
    first: bool = False
    """Begins the utterance, anew if it was begun before."""
    last: bool = False
    """Nothing follows: the answer is the whole Hypothesis."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One piece of audio to decode."""

    samples: Samples
    """At most `Capabilities.longest`; read only, valid until the decode returns."""
    decoding: Decoding = Decoding()


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a recogniser understood of a window, with the evidence to doubt it."""

    text: str
    """With its leading space, if the language has one; empty for silence and for the task `detect`."""
    words: tuple[Word, ...] = ()
    """Positions relative to the window. Empty unless `align` was asked for; else their texts join to `text`."""
    tokens: tuple[Token, ...] = ()
    """Of the text, without timestamps and end."""
    language: str | None = None
    language_probability: float | None = None
    language_probabilities: tuple[tuple[str, float], ...] = ()
    """Most probable first, where detection ran."""
    log_probability: float | None = None
    """Mean over tokens, end of text included, as Whisper's `avg_logprob`."""
    no_speech: float | None = None
    compression_ratio: float | None = None
    temperature: float = 0.0
    capped: bool = False
    """Decoding ended because the window's text is longer than the model can print: split and decode again."""
    work: Work | None = field(default=None, compare=False)
    """Where its time went; None where the recogniser does not tell."""


class Backend(Protocol):
    """A loaded model."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def compute_type(self) -> str:
        """The arithmetic in use, such as ``int8``."""
        ...

    @property
    def memory(self) -> int | None:
        """Bytes on its device, where known."""
        ...

    def close(self) -> None:
        """Free all memory, RAM and VRAM, now. Calls in flight may fail with BackendError."""
        ...


@runtime_checkable
class WindowBackend(Backend, Protocol):
    """An offline model: a whole window at a time."""

    def key(self, window: Window) -> Hashable:
        """Windows of one key can share a `decode`. Pure, cheap, callable from any thread."""
        ...

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        """One hypothesis a window, in order. All windows have one key; at most `max_batch` of them."""
        ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """All words since `open`, positions from there, and how many of them the recogniser will never change.

    A recogniser that revises says 0; what is committed is then found by comparing its answers.
    """

    words: tuple[Word, ...]
    stable: int = 0


@runtime_checkable
class StepBackend(Backend, Protocol):
    """A natively streaming model: chunk by chunk, many streams a call."""

    def open(self, decoding: Decoding) -> Any:
        """A fresh state; its type is the backend's own."""
        ...

    def step(self, states: Sequence[Any], chunks: Sequence[Samples]) -> list[StepResult]:
        """Feed each state, of any age, its next chunk: `Capabilities.chunk` samples where that is fixed."""
        ...

    def finish(self, state: Any) -> Hypothesis:
        """The final text, with words; the state is used up."""
        ...

    def drop(self, state: Any) -> None:
        """The client went away: free the state."""
        ...


class Loader(Protocol):
    """A backend before loading: what it reads, and how to load it."""

    name: str
    """As in settings, with underscores: ``faster_whisper``."""

    def inspect(self, path: Path) -> Capabilities | None:
        """What the weights at `path` can do, without loading them; None if they are not this backend's."""
        ...

    def key(self, window: Window) -> Hashable:
        """As `WindowBackend.key`, known without the weights: who schedules a model need not hold it."""
        ...

    def load(self, path: Path, device: Device) -> WindowBackend | StepBackend:
        """Load, or raise ModelUnavailable with a sentence that ends in the remedy."""
        ...
