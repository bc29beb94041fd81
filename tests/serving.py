"""A whole server on a free port of this machine, in a thread; and an engine that says what the test tells it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn

from server import assembly
from server.app import create_app
from server.connections import MESSAGE, Http, Sockets
from server.context import Context
from server.listener import Server
from server.settings import Settings
from streaming.backends import loaders
from streaming.backlog import Backlog
from streaming.errors import OpenSpeechError, Overloaded
from streaming.events import Event, Final, Marker, SpeechStarted, SpeechStopped
from streaming.local import LocalEngine, Plan
from streaming.models import Catalogue
from streaming.observer import Pulse
from streaming.types import (
    Checkpoint,
    Device,
    ModelInfo,
    Options,
    Recording,
    Samples,
    Segment,
    Summary,
    Transcribed,
)
from tests import toy
from tests.fakes import Loudness


class Talker:
    """An Engine that answers every recording with `segments`, or with a fault, and remembers what it was asked."""

    def __init__(
        self, segments: Sequence[Segment] = (), fault: OpenSpeechError | None = None
    ) -> None:
        self.segments = list(segments)
        self.fault = fault
        self.fail_after: int | None = None
        self.asked: list[Options] = []
        self.admitted: list[bool] = []
        """Of each stream, whether it was to be taken whatever the load."""
        self.hold: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stopped = threading.Event()
        self.in_memory: dict[str, ModelInfo] = {}
        self.on_the_way: list[str] = []
        self.summary = Summary(160_000, 80_000, "toy", "en", 0.99)
        self.streams: list[Chatter] = []
        self.backlog = Backlog(2**30)

    async def transcribe(
        self, recording: Recording, options: Options, after: Checkpoint | None = None
    ) -> AsyncGenerator[Transcribed, None]:
        self.asked.append(options)
        self.loop = asyncio.get_running_loop()
        assert recording.path.is_file()
        if self.fault is not None and self.fail_after is None:
            raise self.fault
        try:
            for number, segment in enumerate(self.segments):
                if self.fault is not None and number == self.fail_after:
                    raise self.fault
                yield segment
            if self.hold is not None:
                await self.hold.wait()
            yield self.summary
        finally:
            self.stopped.set()

    def release(self) -> None:
        """Let go what `hold` holds, from any thread."""
        assert self.loop is not None
        assert self.hold is not None
        self.loop.call_soon_threadsafe(self.hold.set)

    async def open_stream(
        self, options: Options, after: Checkpoint | None = None, *, admitted: bool = False
    ) -> Chatter:
        self.asked.append(options)
        self.admitted.append(admitted)
        if self.fault is not None and self.fail_after is None:
            raise self.fault
        self.streams.append(Chatter())
        return self.streams[-1]

    async def load(self, model: str, *, keep_alive: float | None = None) -> ModelInfo:
        return self.in_memory.setdefault(model, ModelInfo(model, "fake", "cpu", "int8", 0.0))

    async def unload(self, model: str, *, force: bool = False) -> bool:
        return self.in_memory.pop(model, None) is not None

    def loaded(self) -> list[ModelInfo]:
        return list(self.in_memory.values())

    def loading(self) -> list[str]:
        return self.on_the_way

    def refusal(self) -> Overloaded | None:
        return self.fault if isinstance(self.fault, Overloaded) else None

    def pulse(self) -> Pulse:
        return Pulse()

    async def aclose(self) -> None:
        pass


class Chatter:
    """A Stream that hears nothing: an utterance is what came since the last commit, its text is its number of samples.
    What else it says, the test says."""

    def __init__(self) -> None:
        self.model = "toy"
        self.trace = None
        self.lag = 0.0
        self.received = 0
        self.pieces: list[Samples] = []
        self.closed = threading.Event()
        self.room, self.ending = asyncio.Event(), asyncio.Event()
        """Cleared, they make the stream wait: before it takes audio, before it ends."""
        self.room.set()
        self.ending.set()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self._utterance = 0
        self._start = 0

    def call(self, act: Callable[[], object]) -> None:
        """From any thread: do it on the stream's loop."""
        self._loop.call_soon_threadsafe(act)

    def say(self, *events: Event | Exception) -> None:
        """From any thread: events, or a fault that ends the stream."""
        for event in events:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    @property
    def samples(self) -> Samples:
        """All that was received."""
        return np.concatenate([np.zeros(0, np.float32), *self.pieces])

    @property
    def ready(self) -> bool:
        return self.room.is_set()

    async def send(self, samples: Samples) -> None:
        await self.room.wait()
        self.received += len(samples)
        self.pieces.append(samples)

    async def commit(self, marker: str | None = None) -> None:
        self._finish()
        self._events.put_nowait(Marker(marker, self.received))

    async def end(self) -> None:
        self._finish()
        self._events.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event
        await self.ending.wait()

    async def aclose(self) -> None:
        self.closed.set()

    def _finish(self) -> None:
        if self.received > self._start:
            start, self._start = self._start, self.received
            number, self._utterance = self._utterance, self._utterance + 1
            self._events.put_nowait(SpeechStarted(number, start))
            self._events.put_nowait(SpeechStopped(number, self.received))
            text = f" {self.received - start} samples"
            self._events.put_nowait(Final(number, text, (), start, self.received, "en"))


def catalogue(**more: object) -> Catalogue:
    """A catalogue that knows the toy as `toy`, offline."""
    settings: dict[str, object] = {"default": "toy", "paths": {"toy": toy.build()}, "offline": True}
    return Catalogue(loaders(), **(settings | more))  # type: ignore[arg-type]


def context(engine: object, **settings: object) -> Context:
    """A context around a fake engine."""
    return Context(Settings(**settings), engine, catalogue(), ready=True)  # type: ignore[arg-type]


@contextmanager
def running(make: Callable[[], tuple[object, Context]], ping: float = 20.0) -> Iterator[str]:
    """The base URL of a server that runs while the block does. `make` gives its app and context, on its own loop."""
    with stoppable(make, ping=ping) as (url, _):
        yield url


@contextmanager
def stoppable(
    make: Callable[[], tuple[object, Context]], port: int = 0, ping: float = 20.0
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The same on `port`, with a function that asks the server to stop, as a signal would."""
    ready, stop = threading.Event(), threading.Event()
    found: dict[str, object] = {}

    def run() -> None:
        async def main() -> None:
            app, here = make()
            config = uvicorn.Config(
                app,  # type: ignore[arg-type]
                port=port,
                http=Http,
                ws=Sockets,
                ws_max_size=MESSAGE,
                ws_per_message_deflate=False,
                ws_ping_interval=ping,
                ws_ping_timeout=ping,
                lifespan="on",
                log_config=None,
                proxy_headers=False,
                access_log=False,
                timeout_graceful_shutdown=2,
            )
            server = Server(config, here)
            server._say_where = lambda: None  # type: ignore[method-assign]
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if server.started:
                found["port"] = server.servers[0].sockets[0].getsockname()[1]
            ready.set()
            while not stop.is_set() and not serving.done():
                await asyncio.sleep(0.02)
            server.should_exit = True
            await serving

        asyncio.run(main())

    thread = threading.Thread(target=run, name="server")
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{found['port']}", stop.set
    finally:
        stop.set()
        thread.join(30)


def with_engine(engine: object, **settings: object) -> Callable[[], tuple[object, Context]]:
    """A server around a fake engine."""

    def make() -> tuple[object, Context]:
        here = context(engine, **settings)
        return create_app(here), here

    return make


def with_toy(**settings: object) -> Callable[[], tuple[object, Context]]:
    """A server around the real engine and the toy Whisper, default and named `toy`."""

    def make() -> tuple[object, Context]:
        wanted: dict[str, object] = {
            "default_model": "toy",
            "model": (f"toy={toy.build()}", f"english={toy.build(layout='en')}"),
            "offline": True,
            "device": "cpu",
            "runners": False,
        }
        app, here = assembly.make_app(Settings(**(wanted | settings)), Device(workers=2, threads=1))  # type: ignore[arg-type]
        return app, here

    return make


def with_scripted(**settings: object) -> Callable[[], tuple[object, Context]]:
    """A server around the real engine, with a recogniser and a detector that take no time; see `tests.drive.speak`."""

    def make() -> tuple[object, Context]:
        folder = Path(tempfile.mkdtemp(prefix="open-speech-scripted-"))
        (folder / "scripted").touch()
        known = Catalogue(loaders(), default="toy", paths={"toy": folder}, offline=True)
        engine = LocalEngine(known, loaders(), Loudness, Plan(Device(workers=2)))
        here = Context(Settings(**settings), engine, known, ready=True)  # type: ignore[arg-type]
        return create_app(here), here

    return make


def speech_file(name: str) -> Path:
    return Path(__file__).parent / "data" / "speech" / name
