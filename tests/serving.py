"""A whole server on a free port of this machine, in a thread; and an engine that says what the test tells it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from server import assembly
from server.app import create_app
from server.context import Context
from server.listener import MESSAGE, Server, _Http, _Sockets
from server.settings import Settings
from streaming.backends import loaders
from streaming.errors import OpenSpeechError
from streaming.models import Catalogue
from streaming.types import (
    Checkpoint,
    Device,
    ModelInfo,
    Options,
    Recording,
    Segment,
    Summary,
    Transcribed,
)
from tests import toy


class Talker:
    """An Engine that answers every recording with `segments`, or with a fault, and remembers what it was asked."""

    def __init__(
        self, segments: Sequence[Segment] = (), fault: OpenSpeechError | None = None
    ) -> None:
        self.segments = list(segments)
        self.fault = fault
        self.fail_after: int | None = None
        self.asked: list[Options] = []
        self.hold: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stopped = threading.Event()
        self.in_memory: dict[str, ModelInfo] = {}
        self.on_the_way: list[str] = []
        self.summary = Summary(160_000, 80_000, "toy", "en", 0.99)

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

    async def load(self, model: str, *, keep_alive: float | None = None) -> ModelInfo:
        return self.in_memory.setdefault(model, ModelInfo(model, "fake", "cpu", "int8", 0.0))

    async def unload(self, model: str, *, force: bool = False) -> bool:
        return self.in_memory.pop(model, None) is not None

    def loaded(self) -> list[ModelInfo]:
        return list(self.in_memory.values())

    def loading(self) -> list[str]:
        return self.on_the_way

    async def aclose(self) -> None:
        pass


def catalogue(**more: object) -> Catalogue:
    """A catalogue that knows the toy as `toy`, offline."""
    settings: dict[str, object] = {"default": "toy", "paths": {"toy": toy.build()}, "offline": True}
    return Catalogue(loaders(), **(settings | more))  # type: ignore[arg-type]


def context(engine: object, **settings: object) -> Context:
    """A context around a fake engine."""
    return Context(Settings(**settings), engine, catalogue(), ready=True)  # type: ignore[arg-type]


@contextmanager
def running(make: Callable[[], tuple[object, Context]]) -> Iterator[str]:
    """The base URL of a server that runs while the block does. `make` gives its app and context, on its own loop."""
    with stoppable(make) as (url, _):
        yield url


@contextmanager
def stoppable(
    make: Callable[[], tuple[object, Context]], port: int = 0
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
                http=_Http,
                ws=_Sockets,
                ws_max_size=MESSAGE,
                ws_per_message_deflate=False,
                lifespan="on",
                log_config=None,
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
        }
        app, here = assembly.make_app(Settings(**(wanted | settings)), Device(workers=2, threads=1))  # type: ignore[arg-type]
        return app, here

    return make


def speech_file(name: str) -> Path:
    return Path(__file__).parent / "data" / "speech" / name
