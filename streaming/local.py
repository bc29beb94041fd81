"""The engine in this process: threads, event loop, mailboxes, admission.

The pure parts decide; this shell carries: audio to the detector's thread, jobs to the model's threads, events to the
client's queue.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from streaming import remote, selftest
from streaming.audio import media
from streaming.backends.base import Hypothesis, Loader, StepBackend, WindowBackend
from streaming.backends.stepwise import whole
from streaming.backlog import BYTES, MOST, Backlog
from streaming.ears import Ears
from streaming.errors import (
    ModelResting,
    ModelUnavailable,
    OpenSpeechError,
    Overloaded,
    Unsupported,
)
from streaming.events import Event
from streaming.executor import KINDS, Executor, decided
from streaming.meter import Meter, Stages
from streaming.models import Catalogue, Entry
from streaming.observer import Decided, Kind, Observer, Pulse
from streaming.recording import RecordingSession
from streaming.residency import Residency
from streaming.scheduler import Job
from streaming.segmenter import FRAME
from streaming.session import Session
from streaming.types import (
    RATE,
    Checkpoint,
    Device,
    ModelInfo,
    Options,
    Progress,
    Recording,
    Samples,
    Summary,
    Transcribed,
    WindowMode,
)
from streaming.vad.detector import Detector

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

LOADS = 2
"""Models that are loaded at a time; others wait for their turn."""
GULP = 128 * FRAME
"""Samples read from a recording at a time: 4.1 s, whole frames."""
LAG = 30 * RATE
"""Samples a stream may be behind before its sender is slowed down."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the engine uses the machine; plain values from the settings."""

    device: Device
    window: WindowMode = "auto"
    beam: int = 5
    """For recordings; streams use 1."""
    keep_alive: float = 300.0
    max_models: int | None = None
    max_recordings: int = 64
    max_streams: int = 256
    max_wait: float = 600.0
    """Seconds that a recording may have to wait for others."""
    max_backlog: int = 512 * 2**20
    """Bytes of live audio that may wait for its text, of all streams."""
    runners: bool = False
    """Every model in a process of its own."""
    decode_timeout: float = 300.0
    """Seconds a decode may take there."""


class LocalEngine:
    """See `engine.Engine`. Create and use it on one event loop; nothing is loaded before it is needed."""

    def __init__(
        self,
        catalogue: Catalogue,
        loaders: Mapping[str, Loader],
        detector: Callable[[], Detector],
        plan: Plan,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer or Observer()
        self._catalogue = catalogue
        self._loaders = loaders
        self._plan = plan
        self._make_detector = detector
        self._detector: Detector | None = None
        self._ears: Ears | None = None
        self._media = ThreadPoolExecutor(
            4, thread_name_prefix="media", initializer=_give_way
        )  # finding the speech of recordings
        # Not asyncio's own threads: a load takes minutes, and all that is looked up would wait for six of them.
        self._loads = ThreadPoolExecutor(LOADS, thread_name_prefix="load")
        self._models: Residency[Executor] = Residency(
            self._load,
            Executor.close,
            prepare=self._fetch,
            limit=plan.max_models,
            keep_alive=plan.keep_alive,
        )
        self._streams = 0
        self._open: set[LocalStream] = set()  # of them, those that are heard
        self._recordings = 0
        self.backlog = Backlog(plan.max_backlog // BYTES)

    async def open_stream(
        self, options: Options, after: Checkpoint | None = None, *, admitted: bool = False
    ) -> LocalStream:
        """See `Engine.open_stream`."""
        if self._streams >= self._plan.max_streams and not admitted:
            raise _overloaded(f"{self._streams} streams are open, which is the limit", 5.0)
        if self.backlog.full and not admitted:
            raise _overloaded(
                f"{self._streams} streams have {self.backlog.seconds:.0f} s of audio waiting", 10.0
            )
        self._streams += 1
        stack = AsyncExitStack()
        stack.callback(self._close_one_stream)
        try:
            options = replace(options, window=options.window or self._plan.window)
            entry = await self._resolve(options)
            executor = await stack.enter_async_context(self._models.lease(entry.id))
            scheduler = executor.scheduler
            wait = None if admitted else scheduler.admit(time.monotonic())
            if wait is not None:
                raise _overloaded(f"{scheduler.live_streams} streams keep this machine busy", wait)
            detector = await self._get_detector()
            if self._ears is None:
                self._ears = Ears(detector)
            stream = LocalStream(
                options, executor, self._ears, detector.open(), after, stack, self.backlog
            )
            self._open.add(stream)
            stack.callback(self._open.discard, stream)
        except BaseException:
            await stack.aclose()
            raise
        return stream

    async def transcribe(
        self, recording: Recording, options: Options, after: Checkpoint | None = None
    ) -> AsyncGenerator[Transcribed, None]:
        """See `Engine.transcribe`."""
        if (fault := self.refusal()) is not None:
            raise fault
        self._recordings += 1
        try:
            options = replace(
                options,
                window=options.window or self._plan.window,
                beam=options.beam or self._plan.beam,
            )
            stages = Stages(time.monotonic())
            entry = await self._resolve(options)
            with closing(
                media.Recording(recording.path, limit=recording.limit, piece=GULP)
            ) as sound:
                # Before anything is loaded: a file that cannot be read is the commonest fault, the cheapest to find.
                probe = await sound.open()
                async with self._models.lease(entry.id) as executor:
                    length = None if probe.duration is None else probe.duration / RATE
                    wait = executor.pace.wait(length, time.monotonic())
                    if wait > self._plan.max_wait:
                        raise _overloaded(
                            f"other recordings would keep this one waiting for {wait:.0f} s",
                            wait - self._plan.max_wait,
                        )
                    stages.begin(time.monotonic())
                    work = _Reading(self, executor, sound, options, probe.duration, stages)
                    try:
                        async for item in work.items():
                            yield item
                    finally:
                        work.close()
        finally:
            self._recordings -= 1

    def refusal(self) -> Overloaded | None:
        """See `Engine.refusal`."""
        if self._recordings < self._plan.max_recordings:
            return None
        ends = [each.value.pace.next_end(time.monotonic()) for each in self._models.snapshot()]
        return _overloaded(
            f"{self._recordings} recordings are at work or waiting, which is the limit",
            min([each for each in ends if each], default=5.0),
        )

    async def load(self, model: str, *, keep_alive: float | None = None) -> ModelInfo:
        """See `Engine.load`."""
        entry = await asyncio.to_thread(self._catalogue.entry, model)
        executor = await self._models.load(entry.id, keep_alive=keep_alive)
        return executor.information

    async def unload(self, model: str, *, force: bool = False) -> bool:
        """See `Engine.unload`."""
        entry = await asyncio.to_thread(self._catalogue.entry, model)
        return await self._models.unload(entry.id, force=force)

    def loaded(self) -> Sequence[ModelInfo]:
        """See `Engine.loaded`."""
        return [
            replace(
                resident.value.information,
                streams=resident.leases,
                idle_seconds=resident.idle,
                expires_in=resident.expires_in,
            )
            for resident in self._models.snapshot()
        ]

    def loading(self) -> Sequence[str]:
        """See `Engine.loading`."""
        return self._models.loading()

    def pulse(self) -> Pulse:
        """See `Engine.pulse`."""
        waiting: dict[Kind, int] = dict.fromkeys(KINDS.values(), 0)
        running = 0
        for resident in self._models.snapshot():
            scheduler = resident.value.scheduler
            running += scheduler.running
            for lane, kind in KINDS.items():
                waiting[kind] += scheduler.waiting(lane)
        lags = tuple(stream.lag for stream in self._open)
        return Pulse(self._streams, self._recordings, waiting, running, lags)

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        await self._models.aclose()
        if self._ears is not None:
            await self._ears.aclose()
        for pool in (self._media, self._loads):
            pool.shutdown(wait=False, cancel_futures=True)

    def _close_one_stream(self) -> None:
        self._streams -= 1

    async def _get_detector(self) -> Detector:
        if self._detector is None:
            made = await asyncio.to_thread(self._make_detector)
            self._detector = self._detector or made
        return self._detector

    async def _resolve(self, options: Options) -> Entry:
        """The model that serves such a request, its weights on this machine: only then what it can do is known."""

        def find() -> Entry:
            return self._catalogue.resolve(
                options.model, task=options.task, language=options.language
            )

        entry = await asyncio.to_thread(find)
        if entry.downloaded:
            return entry
        await self._fetch(entry.id)
        return await asyncio.to_thread(find)

    async def _fetch(self, key: str) -> None:
        """Download what is not here, before another model has to make room for it."""
        entry = await asyncio.to_thread(self._catalogue.entry, key)
        if not entry.downloaded:
            await asyncio.wrap_future(self._catalogue.download(entry).done)

    async def _on_load(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """`call` on one of the threads that load, as `asyncio.to_thread` does it."""
        here = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._loads, lambda: here.run(call, *arguments, **options)
        )

    async def _load(self, key: str) -> Executor:
        started = time.monotonic()
        entry = await asyncio.to_thread(self._catalogue.entry, key)
        path = await self._on_load(self._catalogue.ensure, entry)
        loader = self._loaders.get(entry.backend)
        if loader is None:
            raise ModelUnavailable(
                f"model {key} needs the backend {entry.backend}, which is not installed;"
                f" installed are {', '.join(sorted(self._loaders))}"
            )
        device = self._plan.device
        backend: WindowBackend | StepBackend
        if self._plan.runners:
            stop = threading.Event()
            try:
                backend = await self._on_load(
                    remote.load, loader, key, path, device, self._plan.decode_timeout, stop
                )
            except asyncio.CancelledError:
                stop.set()  # else the thread would wait for what nobody wants any more
                raise
        else:
            backend = await self._on_load(loader.load, path, device)
        if device.kind == "cuda" and not self._plan.runners:
            try:
                await self._on_load(selftest.check, whole(backend), key)
            except BaseException:
                await self._on_load(backend.close)
                raise
        seconds = time.monotonic() - started
        log.info("model %s loaded in %.1f s (%s)", key, seconds, entry.backend)
        self._observer.loaded(key, seconds)
        info = ModelInfo(
            id=key,
            backend=entry.backend,
            device=device.kind,
            compute_type=backend.compute_type,
            load_seconds=seconds,
            memory=backend.memory,
            languages=backend.capabilities.languages,
            tasks=backend.capabilities.tasks,
        )
        return Executor(backend, info, device.workers, self._observer)


def _give_way() -> None:
    """On a thread that works for recordings: live work goes first. Only Linux has priorities for threads."""
    if sys.platform == "linux":
        os.nice(10)


def _overloaded(what: str, wait: float) -> Overloaded:
    """A refusal; `wait` seconds, and a little by chance, lest all who were refused come back together."""
    wait = min(max(wait, 1.0), 600.0) * random.uniform(1.0, 1.25)
    return Overloaded(f"{what}; try again in {wait:.0f} s", retry_after=round(wait, 1))


class LocalStream:
    """See `engine.Stream`."""

    def __init__(
        self,
        options: Options,
        executor: Executor,
        ears: Ears,
        state: object,
        after: Checkpoint | None,
        stack: AsyncExitStack,
        backlog: Backlog | None = None,
    ) -> None:
        self._session = Session(options, executor.backend.capabilities, executor.backend.key, after)
        self._executor = executor
        self._ears = ears
        self._state = state
        self._stack = stack
        self._backlog = backlog or Backlog(MOST)
        self._events: deque[Event] = (
            deque()
        )  # bounded by the reader: the server replaces stale partials, see sockets
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._error: OpenSpeechError | None = None
        self._closed = False
        self.model = executor.info.id
        self.trace: Callable[[Decided], None] | None = None
        self._meter = Meter(executor.observer, self.model, options.pre_roll_ms * RATE // 1000)
        executor.attach(self._session, self._deliver, self._fail, live=True)

    @property
    def received(self) -> int:
        """Samples taken so far."""
        return self._session.received

    @property
    def lag(self) -> float:
        """See `Stream.lag`."""
        return self._session.lag / RATE

    @property
    def ready(self) -> bool:
        """See `Stream.ready`."""
        return self._room.is_set()

    async def send(self, samples: Samples) -> None:
        """Append audio; while the stream is more than 30 s behind, each call waits as long as its audio lasts, a second
        at most: the sender is slowed to the speed of speech, whatever the length of its messages.

        Raises Overloaded, with nothing taken, where that does not help: when `Backlog.excess` says so.
        """
        if self._backlog.excess(self._session):
            raise _overloaded(
                f"this machine cannot keep up: {self._session.backlog / RATE:.0f} s of this stream wait for their text",
                min(60.0, self._session.backlog / RATE),
            )
        if not self._room.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, len(samples) / RATE)):
                    await self._room.wait()
        self._session.receive_audio(samples)
        self._meter.receive_audio(self._session.received, len(samples), time.monotonic())
        self._ears.listen(self._session, self._state, self._pump, self._fail)
        self._check_room()

    async def commit(self, marker: str | None = None) -> None:
        """See `Stream.commit`."""
        self._session.receive_commit(marker)
        self._pump()

    async def end(self) -> None:
        """See `Stream.end`."""
        self._session.receive_end()
        self._ears.listen(self._session, self._state, self._pump, self._fail)
        self._pump()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events in order; ends after the last. Raises if the stream cannot go on."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._error is not None:
                raise self._error
            if self._session.finished or self._closed:
                return
            self._news.clear()
            await self._news.wait()

    async def aclose(self) -> None:
        """See `Stream.aclose`."""
        if not self._closed:
            self._closed = True
            self._ears.forget(self._session)
            self._executor.detach(self._session, live=True)
            self._session.abandon()
            self._backlog.forget(self._session)
            self._news.set()
            self._room.set()
            await self._stack.aclose()

    def _deliver(self, job: Job) -> None:
        if self.trace is not None:
            self.trace(decided(job))
        if isinstance(job.result, ModelResting) and job.waited:
            # Another rest. The client has what has no final: it comes again, and nothing is lost.
            self._fail(job.result)
            return
        self._session.receive_result(job)
        self._pump()

    def _fail(self, error: OpenSpeechError) -> None:
        self._error = error
        self._news.set()
        self._room.set()

    def _pump(self) -> None:
        if self._closed:
            return
        self._session.speculate = not self._executor.scheduler.crowded
        if jobs := self._session.jobs():
            self._executor.submit(jobs)
        if events := self._session.events():
            settled = self._session.settled()
            self._events.extend(self._meter.receive_events(events, settled, time.monotonic()))
        if self._events or self._session.finished:
            self._news.set()
        self._check_room()

    def _check_room(self) -> None:
        if not self._closed:
            self._backlog.put(self._session, self._session.backlog)
        if self._session.backlog > LAG and self._error is None and not self._closed:
            self._room.clear()
        else:
            self._room.set()


class _Reading:
    """One recording on its way through a model."""

    def __init__(
        self,
        engine: LocalEngine,
        executor: Executor,
        sound: media.Recording,
        options: Options,
        total: int | None,
        stages: Stages,
    ) -> None:
        self._stages = stages
        capabilities = executor.backend.capabilities
        if options.task != "detect" and options.task not in capabilities.tasks:
            raise Unsupported(f"model {executor.info.id} cannot {options.task}", param="model")
        lookahead = max(2 * executor.scheduler.workers, capabilities.max_batch)
        self._session = RecordingSession(
            options,
            capabilities,
            executor.backend.key,
            model=executor.info.id,
            lookahead=lookahead,
            total=total,
        )
        self._engine = engine
        self._executor = executor
        self._sound = sound
        self._results: asyncio.Queue[Job | OpenSpeechError] = (
            asyncio.Queue()
        )  # bounded by the lookahead
        executor.attach(
            self._session, self._results.put_nowait, self._results.put_nowait, live=False
        )
        self._at = 0  # audio done
        executor.pace.begin(self, None if total is None else total / RATE, time.monotonic())

    async def items(self) -> AsyncGenerator[Transcribed, None]:
        """What the session has to say, as soon as it says it."""
        loop = asyncio.get_running_loop()
        detector = await self._engine._get_detector()
        state = detector.open()
        session = self._session

        async def gulp() -> tuple[Samples, Samples, NDArray[np.float32]] | None:
            """The next audio and, for whole frames, its probabilities."""
            began = time.monotonic()
            samples = await self._sound.read()
            self._stages.container += time.monotonic() - began
            if samples is None:
                return None
            rest = -len(samples) % FRAME  # only the last gulp has a broken frame
            frames = np.pad(samples, (0, rest)) if rest else samples
            began = time.monotonic()
            found = await loop.run_in_executor(
                self._engine._media, detector.detect, [state], [frames]
            )
            self._stages.detection += time.monotonic() - began
            return samples, frames, found[0]

        reading: asyncio.Task[tuple[Samples, Samples, NDArray[np.float32]] | None] | None = None
        receiving: asyncio.Task[Job | OpenSpeechError] | None = None
        try:
            while not session.finished:
                if reading is None and session.hungry:
                    reading = loop.create_task(gulp())
                if receiving is None:
                    receiving = loop.create_task(self._results.get())
                waiting = [each for each in (reading, receiving) if each is not None]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and reading.done():
                    gulped, reading = reading.result(), None
                    session.side_by_side = self._executor.free_for(session)
                    if gulped is None:
                        session.receive_end()
                    else:
                        self._count(gulped[0])
                        session.receive_audio(gulped[0])
                        broken = len(gulped[1]) != len(gulped[0])
                        if broken:
                            session.receive_end()
                        session.receive_probabilities(session.frames(), gulped[2])
                if receiving.done():
                    result, receiving = receiving.result(), None
                    if isinstance(result, OpenSpeechError):
                        raise result
                    work = result.result.work if isinstance(result.result, Hypothesis) else None
                    self._stages.receive_job(result.added, result.started, result.finished, work)
                    session.receive_result(result)
                if jobs := session.jobs():
                    self._executor.submit(jobs)
                for item in session.items():
                    if isinstance(item, Progress):
                        done = (item.position - self._at) / RATE
                        self._at = item.position
                        self._executor.pace.receive(self, done, time.monotonic())
                    if isinstance(item, Summary):
                        self._executor.observer.spoken(item.model, 0, item.speech / RATE)
                        item = replace(item, stages=self._stages.spent())  # noqa: PLW2901
                    yield item
        finally:
            left = [each for each in (receiving, reading) if each is not None]
            for each in left:
                each.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _count(self, samples: Samples) -> None:
        executor = self._executor
        executor.observer.heard(executor.info.id, "file", len(samples) / RATE)

    def close(self) -> None:
        """Drop what has not run."""
        self._executor.pace.end(self)
        self._executor.detach(self._session, live=False)
