"""What a dialect is: wire messages to commands, events to wire messages. The shell is `server/conversations.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from streaming.errors import OpenSpeechError
from streaming.events import Event
from streaming.types import Options, Samples


@dataclass(frozen=True, slots=True)
class Open:
    """Finish the open stream, if there is one, and begin another."""

    options: Options


@dataclass(frozen=True, slots=True, eq=False)
class Hear:
    """Audio for the open stream."""

    samples: Samples = field(repr=False)


@dataclass(frozen=True, slots=True)
class Commit:
    """End the open utterance; the event `Marker` with this id follows."""

    marker: str


@dataclass(frozen=True, slots=True)
class End:
    """No more audio: finish the stream, then call `receive_end`."""


@dataclass(frozen=True, slots=True)
class Say:
    """A text message for the client."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket once everything said before has left."""

    code: int = 1000
    reason: str = ""


Command: TypeAlias = Open | Hear | Commit | End | Say | Close


class Dialect(Protocol):
    """One conversation. The shell calls it on the event loop; every method returns at once. Only `read` may run in a
    thread, with nothing else than `encode` called meanwhile."""

    @property
    def patience(self) -> float | None:
        """Seconds to wait for the next message before `receive_nothing`; None: for ever."""
        ...

    @property
    def limit(self) -> float | None:
        """Seconds from the beginning to `receive_limit`; None: never."""
        ...

    def begin(self) -> list[Command]:
        """The socket is open."""
        ...

    def read(self, data: str | bytes) -> Any:
        """What a message holds, its audio decoded. Takes time for long messages, and decides nothing."""
        ...

    def receive(self, message: Any, lag: float) -> list[Command]:
        """What to do about a message that was read; `lag` is the audio in seconds whose fate is not decided yet."""
        ...

    def receive_nothing(self) -> list[Command]:
        """No message came for `patience` seconds."""
        ...

    def receive_limit(self) -> list[Command]:
        """`limit` is reached."""
        ...

    def receive_stop(self) -> list[Command]:
        """The server stops: finish."""
        ...

    def receive_end(self) -> list[Command]:
        """All events of the stream that was ended have been encoded."""
        ...

    def encode(self, event: Event, base: int) -> list[Command]:
        """What to say of an event. Its positions count from the start of its stream, which is sample `base` of all
        that was to be heard."""
        ...

    def fail(self, error: OpenSpeechError | None) -> list[Command]:
        """The conversation cannot go on. None: a fault of ours that the log explains."""
        ...
