"""What a server says, as values. Times are seconds from the start of the stream, counts of audio are bytes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from open_speech_client.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its times."""

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A session stands. It comes again whenever a connection was replaced.

    `resumed`: the same session goes on as if nothing had been. Otherwise it is a new one: what was shown of an
    utterance whose final had not come is void, and the utterance begins again, under the same number."""

    seq: int
    session: str
    model: str
    sample_rate: int | None
    """None for `container`: each recording has its own."""
    received: int
    resumable_seconds: float = 0.0
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """An utterance began."""

    seq: int
    utterance: int
    at: float


@dataclass(frozen=True, slots=True)
class Partial:
    """What is understood of the utterance so far. `committed` only grows; the final begins with it."""

    seq: int
    utterance: int
    revision: int
    committed: str
    tentative: str
    """May still change; follows `committed` with its own leading space."""
    received: int
    lag: float = 0.0
    """Seconds of audio that the server has yet to decide on."""
    words: tuple[Word, ...] = ()

    @property
    def text(self) -> str:
        """All of it."""
        return self.committed + self.tentative


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The utterance ended; its final follows."""

    seq: int
    utterance: int
    at: float


@dataclass(frozen=True, slots=True)
class EagerFinal:
    """The final as it will be, unless a SpeechResumed follows; asked for with `eager`."""

    seq: int
    utterance: int
    text: str


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """The EagerFinal came too early: speech went on."""

    seq: int
    utterance: int


@dataclass(frozen=True, slots=True)
class Final:
    """The text of an utterance, once and for ever. Empty where nothing was said after all."""

    seq: int
    utterance: int
    text: str
    start: float
    end: float
    received: int
    language: str | None = None
    words: tuple[Word, ...] = ()
    timing: dict[str, float | bool | None] | None = None
    """Seconds by stage, asked for with `timings`."""
    stream_language: str | None = None
    """What the stream has settled on, where no language was asked for."""
    cut: bool = False
    """The server stopped in the middle of it, and the stream could not go on elsewhere."""


@dataclass(frozen=True, slots=True)
class Marker:
    """All audio sent before the `commit` with this marker is in finals."""

    seq: int
    marker: str | None
    at: float


@dataclass(frozen=True, slots=True)
class Ack:
    """The server holds `received` bytes."""

    seq: int
    received: int
    lag: float = 0.0


@dataclass(frozen=True, slots=True)
class End:
    """Everything sent is in finals; nothing follows."""

    seq: int
    received: int
    reason: str = "client"


@dataclass(frozen=True, slots=True)
class Error:
    """Something was wrong. If the stream cannot go on, an exception follows."""

    seq: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    utterance: int | None = None
    """The utterance that is lost, if one is."""
    request: str | None = None
    """Under which the server's log knows it."""


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The connection broke, or the server sent us away. The stream tries to go on, and keeps the audio meanwhile; a
    Ready follows, or an exception."""

    seq: int
    message: str


Said: TypeAlias = (
    Ready
    | SpeechStarted
    | Partial
    | SpeechStopped
    | EagerFinal
    | SpeechResumed
    | Final
    | Marker
    | Ack
    | End
    | Error
)
Event: TypeAlias = Said | Reconnecting

_TYPES: dict[str, type[Said]] = {
    "ready": Ready,
    "speech_started": SpeechStarted,
    "partial": Partial,
    "speech_stopped": SpeechStopped,
    "eager_final": EagerFinal,
    "speech_resumed": SpeechResumed,
    "final": Final,
    "marker": Marker,
    "ack": Ack,
    "end": End,
    "error": Error,
}
_NAMES: dict[type[Event], str] = {kind: name for name, kind in _TYPES.items()}
_NAMES[Reconnecting] = "reconnecting"


def decode(message: Mapping[str, Any]) -> Said | None:
    """The event in a server's message; None for a type that this client does not know. Raises ProtocolError."""
    kind = _TYPES.get(message.get("type", ""))
    if kind is None:
        return None
    known = {each.name for each in fields(kind)} - {"resumed"}  # that is ours to say
    given = {name: value for name, value in message.items() if name in known}
    try:
        if "words" in given:
            given["words"] = tuple(
                Word(word["text"], word["start"], word["end"], word["probability"])
                for word in given["words"]
            )
        return kind(**given)
    except (TypeError, KeyError) as error:
        raise ProtocolError(
            f"the server's {message['type']} message is not understood ({error});"
            " are client and server of the same version?"
        ) from None


def encode(event: Event) -> dict[str, Any]:
    """The event as the server would say it, for JSON."""
    return {"type": _NAMES[type(event)], **asdict(event)}
