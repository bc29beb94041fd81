"""Values that travel through the engine. Frozen, serialisable, without behaviour worth a test.

Inside the engine every position (`start`, `end`, `at`) is a sample index (``int``, 16 kHz) counted from the start of
the stream or recording, so that nothing drifts; only the server turns it into seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Samples per second of all audio inside the engine, mono."""

Samples: TypeAlias = NDArray[np.float32]
"""Audio: float32 in [-1, 1], mono, 16 kHz, shape ``(n,)``."""

Task: TypeAlias = Literal["transcribe", "translate", "detect"]
"""`translate` is to English. `detect` names the language and decodes no text."""

WindowMode: TypeAlias = Literal["auto", "short", "full"]
"""How long the windows given to a padded recogniser are; see `docs/architecture.md`."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of text as the recogniser printed it."""

    text: bytes
    """UTF-8; may be a part of a character."""
    log_probability: float
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its place."""

    text: str
    """As written, with its own leading space where the language uses spaces: ``"".join`` gives the text."""
    start: int
    end: int
    """Exclusive; `start <= end`."""
    probability: float
    """In [0, 1]: the mean of its tokens'."""
    tokens: tuple[int, ...] = ()
    """The recogniser's own ids, to force the word as prefix; private to the backend, may be empty."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a client asks of one stream or recording. Values are checked where they come in."""

    model: str = ""
    """A name of the catalogue; empty is the default model."""
    task: Task = "transcribe"
    language: str | None = None
    """ISO-639 code; None detects."""
    languages: tuple[str, ...] = ()
    """Detection considers only these; empty means all that the model knows."""
    prompt: str = ""
    """Text that is supposed to precede the audio: style and vocabulary."""
    hotwords: tuple[str, ...] = ()
    temperature: float = 0.0
    """Where Whisper's ladder starts; 0 … 1."""
    beam: int | None = None
    """Hypotheses kept while decoding; None: 5 for recordings, 1 live."""
    words: bool = False
    """Word times are wanted. Recordings then come in segments of at most 7 s."""
    tokens: bool = False
    """Token log-probabilities are wanted."""
    window: WindowMode | None = None
    """None: the server's setting."""
    endpointing: Literal["silence", "client"] = "silence"
    endpointing_ms: int = 500
    """Silence that ends an utterance."""
    vad_threshold: float = 0.5
    """Speech probability to enter speech, 0 … 1; the exit lies 0.15 below."""
    pre_roll_ms: int = 320
    """Audio kept before the first speech frame."""
    partials: bool = True
    eager: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """A finished recording: any container that FFmpeg's audio demuxers read."""

    path: Path
    """A file on this machine. Its name is never used to decide what it holds."""
    limit: float = 4 * 3600.0
    """Seconds of audio at most; TooLong beyond."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a recording with its text: ends at a sentence or a pause, at most 7 s long where words are known."""

    start: int
    end: int
    text: str
    """With the leading space of its first word; never empty."""
    words: tuple[Word, ...] = ()
    tokens: tuple[Token, ...] = ()
    language: str | None = None
    temperature: float = 0.0
    log_probability: float = 0.0
    """Mean over the tokens of the window it came from."""
    compression_ratio: float = 1.0
    no_speech: float = 0.0
    """Probability in [0, 1] that its window holds no speech."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a recording is done, for progress bars; comes before the segments it covers at the latest."""

    position: int
    total: int | None
    """None where the container does not tell its length."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a recogniser did for a window, in seconds. A batch takes the time once: its windows share it."""

    encode: float = 0.0
    """Features, and the encoder."""
    generate: float = 0.0
    """The language, where it was asked for, and the text."""
    align: float = 0.0
    """The times of words."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the time of a recording went, in seconds by the clock. Stages overlap: it is read while it is decoded."""

    load: float
    """Until the model was there: finding, downloading and loading it, and looking at the file."""
    container: float
    """Decoding and resampling of the container."""
    detection: float
    """Finding speech."""
    queue: float
    """Windows waited for workers, and none was at one."""
    recognition: float
    """At least one window was at work; alignment included."""
    work: Work | None = None
    """What was done then: windows that were at work side by side add up. None where the recogniser does not tell."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The last item of every transcription."""

    samples: int
    """Length of the recording."""
    speech: int
    """Samples within utterances."""
    model: str
    """The model that did the work, by its id."""
    language: str | None = None
    language_probability: float | None = None
    stages: Spent | None = None
    """None where nobody measured."""


Transcribed: TypeAlias = Segment | Progress | Summary
"""What `Engine.transcribe` yields: segments in order, progress between them, one summary last."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs and how wide."""

    kind: Literal["cpu", "cuda"] = "cpu"
    index: int = 0
    compute_type: str | None = None
    """CTranslate2's names (int8, float16, …); None: float16 on a GPU, int8 on a CPU."""
    workers: int = 2
    """Decodes that run at the same time."""
    threads: int = 1
    """CPU threads of each."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model."""

    id: str
    backend: str
    device: str
    compute_type: str
    load_seconds: float
    memory: int | None = None
    """Bytes on its device, where known."""
    streams: int = 0
    """Streams and recordings that use it now."""
    idle_seconds: float = 0.0
    expires_in: float | None = None
    """Seconds until it is unloaded if nobody uses it; None: never."""
    languages: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ("transcribe",)
    pid: int | None = None
    """Its process, where it has one of its own."""
    restarts: int = 0
    """Times that process died and was replaced."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a stream can be taken up again, by this engine or another."""

    sample: int
    utterance: int
    committed: tuple[Word, ...] = ()
    language: str | None = None
    prompt: str = ""
    detector: bytes = field(default=b"", repr=False)
