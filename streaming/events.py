"""What a stream can tell its client: a closed union, matched exhaustively.

Promises, each a property test: within an utterance `committed` only grows and the final begins with it; every
`SpeechStarted` is followed by exactly one `Final` or `Failed` of that utterance, in order; positions are sample indices
from the start of the stream and never go back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from streaming.errors import OpenSpeechError
from streaming.types import Checkpoint, Word, Work


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody speaks."""

    utterance: int
    at: int
    """Where the utterance's audio begins, pre-roll included."""


@dataclass(frozen=True, slots=True)
class Partial:
    """What is understood of the open utterance so far."""

    utterance: int
    revision: int
    committed: str
    """Never changes again; grows only."""
    tentative: str
    """Follows `committed` and may still change; carries its own leading space."""
    words: tuple[Word, ...] = ()
    """All of them, committed ones first; empty unless asked for."""


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The utterance ended; its final follows."""

    utterance: int
    at: int
    """End of its last speech."""
    split: bool = False
    """It was too long, and goes on in the next one from `at`: no silence ended it."""


@dataclass(frozen=True, slots=True)
class Eager:
    """The final as it will be if nobody speaks on; asked for with `eager`."""

    utterance: int
    text: str


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """An `Eager` came too early: speech went on."""

    utterance: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a final went, in seconds."""

    queued: float = 0.0
    decoding: float = 0.0
    speculated: bool = False
    """The result existed before the endpoint."""
    delay: float | None = None
    """From the arrival of the last speech to the final; None where nobody measures."""
    work: Work | None = None
    """What was done in `decoding`, the final's share; None where the recogniser does not tell."""


@dataclass(frozen=True, slots=True)
class Final:
    """The text of an utterance, once and for ever. `text` may be empty where nothing was said after all."""

    utterance: int
    text: str
    words: tuple[Word, ...]
    start: int
    end: int
    """The samples it covers, pre-roll and trailing silence included; finals do not overlap. Where an utterance was
    split, words that were committed before lie beyond its end: they are in this final and in no other."""
    language: str | None
    timing: Timing = Timing()
    checkpoint: Checkpoint | None = None
    cut: bool = False
    """The stream ended in the middle of it."""
    stream_language: str | None = None
    """The one that the stream has settled on, if it has."""


@dataclass(frozen=True, slots=True)
class Marker:
    """Everything sent before the `commit` that carried this id is in finals."""

    id: str | None
    at: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An utterance could not be recognised; the stream goes on."""

    utterance: int
    error: OpenSpeechError


Event: TypeAlias = (
    SpeechStarted | Partial | SpeechStopped | Eager | SpeechResumed | Final | Marker | Failed
)
