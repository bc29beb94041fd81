"""The engine as the server sees it: four verbs. In this process it is `local.LocalEngine`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Protocol

from streaming.backlog import Backlog
from streaming.errors import Overloaded
from streaming.events import Event
from streaming.observer import Decided, Pulse
from streaming.types import Checkpoint, ModelInfo, Options, Recording, Samples, Transcribed


class Stream(Protocol):
    """One live stream. Used by one task; `async for event in stream` may run in another.

    Iteration ends after the last event of an ended stream. Leaving without `end` abandons: call `aclose` then, and
    nothing of the stream stays behind.
    """

    trace: Callable[[Decided], None] | None
    """Whoever wants to know of every decode; on the event loop. None: nobody."""

    @property
    def model(self) -> str:
        """Id of the model in use."""
        ...

    @property
    def received(self) -> int:
        """Samples taken so far."""
        ...

    @property
    def ready(self) -> bool:
        """`send` would not wait now."""
        ...

    async def send(self, samples: Samples) -> None:
        """Append audio. Waits while more than the allowed lag is unprocessed: that is the back-pressure."""
        ...

    async def commit(self, marker: str | None = None) -> None:
        """End the open utterance here; a `Marker` follows the finals of all audio sent before.

        Whoever calls bounds how many wait for theirs: a final may take minutes.
        """
        ...

    async def end(self) -> None:
        """No more audio: what is open is finished, then iteration ends."""
        ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def aclose(self) -> None:
        """Abandon. Idempotent."""
        ...

    @property
    def lag(self) -> float:
        """Seconds of received audio newer than that of which everything is said that is to be said by now: in a pause,
        what the detector has not judged; while somebody speaks, what no partial has heard; what a final is due for."""
        ...


class Engine(Protocol):
    """In-process, child process or cluster: the same verbs."""

    async def open_stream(
        self, options: Options, after: Checkpoint | None = None, *, admitted: bool = False
    ) -> Stream:
        """Open, loading the model if need be. Raises UnknownModel, ModelUnavailable, Unsupported, Overloaded.

        `admitted`: it goes on where a stream of the same client ended, and is taken whatever the load.
        """
        ...

    def transcribe(
        self, recording: Recording, options: Options, after: Checkpoint | None = None
    ) -> AsyncGenerator[Transcribed, None]:
        """Segments of a recording, in order, as they are ready; a Summary last. Closing the generator stops the work.

        Everything that is the client's fault and can be known early (unknown model, unreadable audio, impossible
        task) is raised by the first step.
        """
        ...

    async def load(self, model: str, *, keep_alive: float | None = None) -> ModelInfo:
        """Load a model, or do nothing if it is. `keep_alive`: seconds without use after which it is unloaded, below
        zero never; None: the setting."""
        ...

    async def unload(self, model: str, *, force: bool = False) -> bool:
        """Unload; False if it was not loaded. In use, it goes when its work is done; `force` ends the work.

        An idle model's memory is free on return. Raises ModelBusy while it is being loaded.
        """
        ...

    def loaded(self) -> Sequence[ModelInfo]:
        """The models in memory."""
        ...

    def loading(self) -> Sequence[str]:
        """Ids of the models on their way into memory, downloads that a request waits for included."""
        ...

    def refusal(self) -> Overloaded | None:
        """Why another recording would be refused now, whatever it is; None if it would not. Cheap."""
        ...

    @property
    def backlog(self) -> Backlog:
        """The audio of all live streams that waits for its text. Who holds some for a stream counts it there."""
        ...

    def pulse(self) -> Pulse:
        """What there is to do at this moment. Cheap."""
        ...

    async def aclose(self) -> None:
        """Abandon everything and unload."""
        ...
