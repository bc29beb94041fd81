"""The flight recorder: what live streams were sent, and all that was said and decided, in files that survive a crash.

A file is lines of JSON. A `send` is followed by `bytes` bytes of audio and a line break: people can read
it, and a program needs no library.

    {"flight": 1, "model": "toy", "options": {…}, …}
    {"t": 0.02, "do": "send", "samples": 1600, "format": "s16", "bytes": 3200}
    …3200 bytes…
    {"t": 1.31, "event": "SpeechStarted", "utterance": 0, "at": 3072}
    {"t": 2.05, "decode": "partial", "start": 3072, "end": 19456, …}
    {"t": 9.80, "do": "end"}

``s16`` and ``f32`` are little-endian, mono, 16 kHz; whichever holds the samples exactly. `t` is in seconds from the
opening.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from server import __version__, logs
from server.settings import Settings
from streaming.backlog import Backlog
from streaming.engine import Engine, Stream
from streaming.errors import OpenSpeechError, Overloaded
from streaming.events import Event, Failed, Final
from streaming.observer import Decided, Pulse
from streaming.types import Checkpoint, ModelInfo, Options, Recording, Samples, Transcribed

log = logging.getLogger(__name__)

FORMAT = 1
ENDING = ".flight"
DELAY = 0.5
"""Seconds that something may wait in memory for the disk."""
WAITING = 32 * 2**20
"""Bytes that may wait for a slow disk, of one stream; beyond, its file ends."""
ALTOGETHER = 256 * 2**20
"""The same of all streams together; beyond, the file ends of the stream that would have more wait."""
LAST = b'{"do": "cut"}\n'
"""What a file ends with that was given up."""
SCALE = {"s16": ("<i2", 32768.0), "f32": ("<f4", 1.0)}


@dataclass(slots=True, eq=False)
class _Tape:
    """One stream's file. Filled on the event loop, emptied by the writer's thread."""

    path: Path
    pending: bytearray = field(default_factory=bytearray)
    closed: bool = False
    """Nothing more will be put."""
    given_up: bool = False
    """It ends early."""
    file: int | None = None
    done: bool = False
    """All of it is on the disk."""


class Writer:
    """A thread that puts tapes on the disk and removes the oldest files."""

    def __init__(self, folder: Path, limit: int, files: int) -> None:
        """At most `limit` bytes in at most `files` files. Raises OSError where the folder cannot be used."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._limit = limit
        self._most = files
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._tapes: list[_Tape] = []  # bounded by open streams
        self._sizes: OrderedDict[Path, int] = (
            OrderedDict(  # oldest first: names begin with the time
                (path, path.stat().st_size) for path in sorted(folder.glob("*" + ENDING))
            )
        )
        self._number = 0
        self._waiting = (
            0  # bytes of all tapes in memory, those included that the thread is about to write
        )
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="flight recorder", daemon=True)
        self._thread.start()

    def open(self, name: str, first: bytes) -> _Tape:
        """A new file, named after the time and `name`, that begins with `first`."""
        now = time.time()
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}"
        with self._lock:
            self._number += 1
            tape = _Tape(self._folder / f"{moment}-{name}-{self._number}{ENDING}")
            tape.pending += first
            self._waiting += len(first)
            self._tapes.append(tape)
        return tape

    def put(self, tape: _Tape, data: bytes, audio: bytes = b"") -> None:
        """Append."""
        with self._lock:
            if tape.given_up or tape.done:
                return
            tape.pending += data
            tape.pending += audio
            self._waiting += len(data) + len(audio)
            tape.given_up = len(tape.pending) > WAITING or self._waiting > ALTOGETHER
            ended = tape.given_up
        if ended:
            log.warning(
                "a flight recording ends early: the disk cannot keep up (%s)", tape.path.name
            )

    def close(self, tape: _Tape) -> None:
        """Nothing more comes."""
        with self._lock:
            tape.closed = True

    def stop(self) -> None:
        """Write what waits, and end."""
        with self._lock:
            self._stopping = True
            for tape in self._tapes:
                tape.closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wake.wait_for(lambda: self._stopping, DELAY)
                stopping = self._stopping
                batch = [(tape, bytes(tape.pending), tape.closed) for tape in self._tapes]
                for tape in self._tapes:
                    tape.pending.clear()
            while batch:
                tape, data, closed = batch.pop(0)
                self._store(tape, data, closed)
                with self._lock:
                    self._waiting -= len(data)
            with self._lock:
                for tape in self._tapes:
                    if tape.done:
                        self._waiting -= len(tape.pending)
                        tape.pending.clear()
                self._tapes = [tape for tape in self._tapes if not tape.done]
                if stopping and not self._tapes:
                    return

    def _store(self, tape: _Tape, data: bytes, closed: bool) -> None:
        if tape.done:
            return
        try:
            if data:
                if tape.file is None:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
                    tape.file = os.open(tape.path, flags, 0o600)
                    self._sizes[tape.path] = 0
                _write(tape.file, data)
                self._sizes[tape.path] += len(data)
                self._make_room()
        except OSError as error:
            log.warning("a flight recording ends early: %s", error)
            tape.given_up = True
        if closed or tape.given_up:
            self._finish(tape)

    def _finish(self, tape: _Tape) -> None:
        tape.done = True
        if tape.file is None:
            return
        with suppress(OSError):
            if tape.given_up:
                _write(tape.file, b"\n" + LAST)
        os.close(tape.file)
        tape.file = None

    def _make_room(self) -> None:
        """The oldest that are complete go first. Where there are none, the oldest that is being written ends early."""
        while len(self._sizes) > self._most or sum(self._sizes.values()) > self._limit:
            live = {tape.path: tape for tape in self._tapes if tape.file is not None}
            oldest = next((path for path in self._sizes if path not in live), None)
            if oldest is None:
                tape = live[next(iter(self._sizes))]
                tape.given_up = True
                self._finish(tape)
            elif len(self._sizes) == 1:
                return  # one stream alone filled the room: its beginning is better than nothing
            else:
                oldest.unlink(missing_ok=True)
                del self._sizes[oldest]


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


class Recorder:
    """An Engine whose streams are recorded; see `engine.Engine`."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Raises OSError where the folder cannot be used."""
        assert settings.flight_dir is not None
        self._engine = engine
        self._window = settings.window
        limit = settings.flight_mb * 2**20
        self._writer = Writer(settings.flight_dir.expanduser(), limit, settings.flight_files)
        log.warning(
            "the flight recorder is on: audio and text of live streams are kept in %s, at most %d MiB",
            settings.flight_dir,
            settings.flight_mb,
        )

    async def open_stream(
        self, options: Options, after: Checkpoint | None = None, *, admitted: bool = False
    ) -> Stream:
        options = replace(options, window=options.window or self._window)
        stream = await self._engine.open_stream(options, after, admitted=admitted)
        info = next((each for each in self._engine.loaded() if each.id == stream.model), None)
        return _Recorded(stream, self._writer, options, after, info)

    def transcribe(
        self, recording: Recording, options: Options, after: Checkpoint | None = None
    ) -> AsyncGenerator[Transcribed, None]:
        return self._engine.transcribe(recording, options, after)

    async def load(self, model: str, *, keep_alive: float | None = None) -> ModelInfo:
        return await self._engine.load(model, keep_alive=keep_alive)

    async def unload(self, model: str, *, force: bool = False) -> bool:
        return await self._engine.unload(model, force=force)

    def loaded(self) -> Sequence[ModelInfo]:
        return self._engine.loaded()

    def loading(self) -> Sequence[str]:
        return self._engine.loading()

    def refusal(self) -> Overloaded | None:
        return self._engine.refusal()

    @property
    def backlog(self) -> Backlog:
        return self._engine.backlog

    def pulse(self) -> Pulse:
        return self._engine.pulse()

    async def aclose(self) -> None:
        await self._engine.aclose()
        await asyncio.to_thread(self._writer.stop)


class _Recorded:
    """A Stream that keeps a record; see `engine.Stream`."""

    def __init__(
        self,
        stream: Stream,
        writer: Writer,
        options: Options,
        after: Checkpoint | None,
        info: ModelInfo | None,
    ) -> None:
        self.trace: Callable[[Decided], None] | None = None
        stream.trace = self._decided
        self._stream = stream
        self._writer = writer
        self._opened = time.monotonic()
        self._tape: _Tape | None = None
        self._header: dict[str, Any] = {
            "flight": FORMAT,
            "version": __version__,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": stream.model,
            "backend": info and info.backend,
            "device": info and info.device,
            "compute_type": info and info.compute_type,
            "options": msgspec.to_builtins(options),
            "after": msgspec.to_builtins(after),
        }

    @property
    def model(self) -> str:
        return self._stream.model

    @property
    def received(self) -> int:
        return self._stream.received

    @property
    def lag(self) -> float:
        return self._stream.lag

    @property
    def ready(self) -> bool:
        return self._stream.ready

    async def send(self, samples: Samples) -> None:
        await self._stream.send(samples)
        # Afterwards: what the engine refuses was never heard, and a replay would hear it.
        kind, audio = _exact(samples)
        record = {"do": "send", "samples": len(samples), "format": kind, "bytes": len(audio)}
        self._put(record, audio + b"\n")

    async def commit(self, marker: str | None = None) -> None:
        self._put({"do": "commit", "marker": marker})
        await self._stream.commit(marker)

    async def end(self) -> None:
        self._put({"do": "end"})
        await self._stream.end()

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            async for event in self._stream:
                self._put(plain(event))
                yield event
        except OpenSpeechError as error:
            self._put({"error": type(error).__name__, "message": error.message})
            raise

    async def aclose(self) -> None:
        if self._tape is not None and not self._tape.closed:
            self._put({"do": "close", "lag": round(self.lag, 3)})
            self._writer.close(self._tape)
        await self._stream.aclose()

    def _decided(self, decided: Decided) -> None:
        self._put({"decode": decided.kind, **_without(msgspec.to_builtins(decided), "kind")})
        if self.trace is not None:
            self.trace(decided)

    def _put(self, record: dict[str, Any], audio: bytes = b"") -> None:
        if self._tape is None:
            # Now, because only now the task has the name of what it serves.
            ids = logs.ids()
            name = ids.get("stream") or ids.get("request") or "stream"
            self._tape = self._writer.open(name, _line({**self._header, **ids}))
        moment = round(time.monotonic() - self._opened, 4)
        self._writer.put(self._tape, _line({"t": moment, **record}), audio)


def _exact(samples: Samples) -> tuple[str, bytes]:
    """The shorter of the formats that lose nothing."""
    scaled = samples * np.float32(32768)
    whole = np.rint(scaled)
    if np.array_equal(scaled, whole) and (
        not len(whole) or -32768 <= whole.min() <= whole.max() <= 32767
    ):
        return "s16", whole.astype("<i2").tobytes()
    return "f32", samples.astype("<f4").tobytes()


def plain(event: Event) -> dict[str, Any]:
    """An event as a record."""
    name = type(event).__name__
    if isinstance(event, Failed):
        error = {"error": type(event.error).__name__, "message": event.error.message}
        return {"event": name, "utterance": event.utterance, **error}
    if isinstance(event, Final):
        event = replace(event, checkpoint=None)
    return {"event": name, **msgspec.to_builtins(event)}


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


# Reading.


class NoFlight(OpenSpeechError):
    """The file is none of ours."""


@dataclass(slots=True)
class Flight:
    """A file, read."""

    header: dict[str, Any]
    records: list[dict[str, Any]]
    """In order; a `send` has its `audio` as Samples."""
    whole: bool
    """It ends as files end whose stream was closed: neither a crash nor a full folder cut it."""

    @property
    def options(self) -> Options:
        """What the stream was asked to be."""
        return msgspec.convert(self.header["options"], Options)

    @property
    def after(self) -> Checkpoint | None:
        """Where it was taken up."""
        return msgspec.convert(self.header["after"], Checkpoint | None)

    @property
    def samples(self) -> Samples:
        """All audio."""
        pieces = [each["audio"] for each in self.records if each.get("do") == "send"]
        return np.concatenate([np.zeros(0, np.float32), *pieces])


def read(path: Path) -> Flight:
    """What `path` holds, up to where it was cut off. Raises NoFlight, OSError."""
    with path.open("rb") as file:
        header = _parsed(file.readline())
        if header is None or header.get("flight") != FORMAT:
            raise NoFlight(f"{path} is no flight recording of this version; give a *{ENDING} file")
        records: list[dict[str, Any]] = []
        while (record := _parsed(file.readline())) is not None and record.get("do") != "cut":
            if record.get("do") == "send":
                size = record["bytes"]
                data = file.read(size + 1)
                if len(data) <= size:
                    break
                kind, scale = SCALE[record["format"]]
                audio = np.frombuffer(data, kind, size // np.dtype(kind).itemsize)
                record["audio"] = audio.astype(np.float32) / np.float32(scale)
            records.append(record)
    whole = bool(records) and records[-1].get("do") == "close"
    return Flight(header, records, whole)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A record; None at the end, and for what is no whole one."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
