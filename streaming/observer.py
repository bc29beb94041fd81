"""What the engine tells whoever counts: one narrow hook, so that nothing here knows how metrics are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Mode: TypeAlias = Literal["stream", "file"]
Kind: TypeAlias = Literal["final", "speculative", "partial", "file"]
"""Of a decode, most urgent first; the scheduler's lanes by the names that people know."""


class Observer:
    """Hears what happens and does nothing; override what is wanted.

    Called on the event loop, but for `download_ended` and `restarted`, often several times for each second of audio:
    every method returns at once and raises nothing. `model` is an id of the catalogue, durations are seconds.
    """

    def heard(self, model: str, mode: Mode, seconds: float) -> None:
        """Audio came in."""

    def first_partial(self, model: str, delay: float) -> None:
        """The first words of an utterance were shown, so long after the first of its audio was heard."""

    def committed(self, model: str, delay: float) -> None:
        """A word was settled for good, so long after its last sample was heard."""

    def final(self, model: str, delay: float) -> None:
        """An utterance's final left, so long after the last of its speech was heard."""

    def spoken(self, model: str, utterances: int, seconds: float) -> None:
        """Utterances ended with so much speech in all."""

    def shed(self, model: str) -> None:
        """A partial decode was replaced by a newer one before it ran."""

    def decoded(
        self, model: str, kinds: Sequence[Kind], waits: Sequence[float], seconds: float
    ) -> None:
        """A batch was decoded: the kind of each job and how long it waited, and how long the decode took."""

    def decode_failed(self, model: str) -> None:
        """A job got an error for an answer."""

    def loaded(self, model: str, seconds: float) -> None:
        """A model was loaded."""

    def restarted(self, model: str) -> None:
        """A model's process was replaced by a new one. On any thread."""

    def download_ended(self, done: bool) -> None:
        """A download is complete, or failed. On the download's thread."""


@dataclass(frozen=True, slots=True)
class Decided:
    """One decode of one stream, as it came back."""

    kind: Kind
    start: int
    end: int
    """The samples it was about."""
    queued: float
    took: float
    text: str | None
    """What was understood; None for a failure."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What an engine has to do at this moment."""

    streams: int = 0
    recordings: int = 0
    waiting: dict[Kind, int] = field(default_factory=dict)
    """Jobs that no worker has taken."""
    running: int = 0
    """Batches being decoded."""
    lags: tuple[float, ...] = ()
    """Of each live stream: seconds of received audio that are not decided on."""
