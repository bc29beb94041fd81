"""Metrics for Prometheus: every name in one table, every label from a closed set, whatever clients send."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from server import __version__
from server.context import Context, context
from server.routes import Endpoint, Reply
from streaming.observer import Kind, Mode, Observer

if TYPE_CHECKING:
    from prometheus_client import Metric

Dialect: TypeAlias = Literal["native", "realtime", "faster_whisper_server"]
Outcome: TypeAlias = Literal["done", "client_gone", "refused", "restart", "error"]

LATENCIES = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0)
"""Seconds that people tell apart."""
WORK = (0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0)
MODELS = 8
"""Models that get series of their own; later ones share `other`, so that nobody can grow what is scraped."""
NAME = 80
"""Characters of a model's name that are shown."""
OTHER = "other"
FRESH = 1.0
"""Seconds for which an answer is given again: however often it is asked for, the work is done once."""
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # else a third more series that nobody reads


class _Model:
    """The series of one model, looked up once."""

    def __init__(self, all_: Metrics, name: str) -> None:
        self.name = name
        self.received = {mode: all_.received.labels(name, mode) for mode in ("stream", "file")}
        self.speech = all_.speech.labels(name)
        self.utterances = all_.utterances.labels(name)
        self.first = all_.first.labels(name)
        self.commit = all_.commits.labels(name)
        self.final = all_.finals.labels(name)
        self.decode = {
            kind: all_.decode.labels(name, kind)
            for kind in ("final", "speculative", "partial", "file")
        }
        self.batch = all_.batch.labels(name)
        self.failed = all_.failed.labels(name)
        self.shed = all_.dropped.labels(name, "busy")
        self.unread = all_.dropped.labels(name, "unread")
        self.restarts = all_.restarts.labels(name)


class Metrics(Observer):
    """One server's. What the engine tells is counted; what is true at the moment is asked when somebody looks."""

    def __init__(self, device: str = "cpu") -> None:
        """`device` is where models run, such as `cuda:0`."""
        self.registry = CollectorRegistry(auto_describe=False)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"open_speech_{name}", text, labels, registry=self.registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: Sequence[float] = LATENCIES
        ) -> Histogram:
            full = f"open_speech_{name}"
            return Histogram(full, text, labels, registry=self.registry, buckets=buckets)

        self.build = Info("open_speech_build", "what runs", registry=self.registry)
        self.build.info(
            {"version": __version__, "python": platform.python_version(), "device": device}
        )
        self.requests = counter(
            "http_requests_total", "answered requests", "route", "method", "status"
        )
        self.request_duration = histogram(
            "http_request_duration_seconds",
            "from a request's head to the last byte of its answer",
            "route",
            "method",
            "status",
            buckets=(0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0),
        )
        self.sessions = counter("streams_total", "live sessions that ended", "dialect", "outcome")
        self.open = Gauge(
            "open_speech_streams_open", "live sessions", ["dialect"], registry=self.registry
        )
        self.received = counter(
            "audio_received_seconds_total", "audio the engine took", "model", "mode"
        )
        self.speech = counter("speech_seconds_total", "audio within utterances", "model")
        self.utterances = counter("utterances_total", "finals of live streams", "model")
        self.first = histogram(
            "first_partial_latency_seconds", "from an utterance's first audio to its text", "model"
        )
        self.commits = histogram(
            "commit_delay_seconds", "from a word's last audio to when it is settled", "model"
        )
        self.finals = histogram(
            "final_latency_seconds",
            "from the last audio of speech to the final, the silence that ends it included",
            "model",
        )
        self.decode = histogram(
            "decode_duration_seconds",
            "of one batch, by its first job",
            "model",
            "kind",
            buckets=WORK,
        )
        self.queue = histogram(
            "decode_queue_seconds", "that a job waited for a worker", "kind", buckets=WORK
        )
        self.batch = histogram(
            "decode_batch_size", "jobs in a decode", "model", buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.failed = counter("decodes_failed_total", "jobs answered with an error", "model")
        self.dropped = counter(
            "partials_dropped_total",
            "partials replaced before they were decoded (busy) or read (unread)",
            "model",
            "reason",
        )
        self.lag = histogram(
            "stream_lag_seconds",
            "received audio not decided on, of each stream each second",
            buckets=(0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
        )
        self.lateness = histogram(
            "event_loop_lateness_seconds",
            "how late the event loop woke up from a short sleep",
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
        )
        self.restarts = counter("runner_restarts_total", "model processes replaced", "model")
        self.loads = histogram(
            "model_load_duration_seconds",
            "to load a model",
            buckets=(0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
        )
        self.downloads = counter("downloads_total", "model downloads that ended", "outcome")
        for outcome in ("done", "failed"):
            self.downloads.labels(outcome)
        ProcessCollector(registry=self.registry)
        self._models: dict[str, _Model] = {}
        self._kinds = {
            kind: self.queue.labels(kind) for kind in ("final", "speculative", "partial", "file")
        }
        self._now: _Now | None = None
        self._text = b""
        self._until = 0.0
        self._rendering = asyncio.Lock()

    # What the engine tells.

    def heard(self, model: str, mode: Mode, seconds: float) -> None:
        self.of(model).received[mode].inc(seconds)

    def first_partial(self, model: str, delay: float) -> None:
        self.of(model).first.observe(delay)

    def committed(self, model: str, delay: float) -> None:
        self.of(model).commit.observe(delay)

    def final(self, model: str, delay: float) -> None:
        self.of(model).final.observe(delay)

    def spoken(self, model: str, utterances: int, seconds: float) -> None:
        self.of(model).utterances.inc(utterances)
        self.of(model).speech.inc(seconds)

    def shed(self, model: str) -> None:
        self.of(model).shed.inc()

    def decoded(
        self, model: str, kinds: Sequence[Kind], waits: Sequence[float], seconds: float
    ) -> None:
        series = self.of(model)
        series.decode[kinds[0]].observe(seconds)
        series.batch.observe(len(kinds))
        for kind, wait in zip(kinds, waits, strict=True):
            self._kinds[kind].observe(wait)

    def decode_failed(self, model: str) -> None:
        self.of(model).failed.inc()

    def loaded(self, model: str, seconds: float) -> None:
        del model
        self.loads.observe(seconds)

    def restarted(self, model: str) -> None:
        self.of(model).restarts.inc()

    def download_ended(self, done: bool) -> None:
        self.downloads.labels("done" if done else "failed").inc()

    # What the server tells.

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is of the route table, never of the client."""
        known = method if method in METHODS else OTHER
        self.requests.labels(route, known, str(status)).inc()
        self.request_duration.labels(route, known, str(status)).observe(seconds)

    @contextmanager
    def session(self, dialect: Dialect) -> Generator[Ending]:
        """A live session for as long as the block runs."""
        ending = Ending()
        gauge = self.open.labels(dialect)
        gauge.inc()
        try:
            yield ending
        finally:
            gauge.dec()
            self.sessions.labels(dialect, ending.outcome).inc()

    def of(self, model: str) -> _Model:
        """The series of a model, or those that all share who came too late."""
        name = model[:NAME]
        found = self._models.get(name)
        if found is None:
            name = name if len(self._models) < MODELS else OTHER
            found = self._models.get(name) or _Model(self, name)
            self._models[name] = found
        return found

    # What is asked.

    def watch(self, here: Context) -> None:
        """From now on an answer also tells what is true of this server at the moment."""
        self._now = _Now(self, here)
        self.registry.register(self._now)

    async def text(self) -> bytes:
        """Everything in Prometheus' text format; at most a second old."""
        async with self._rendering:
            if time.monotonic() >= self._until:
                if self._now is not None:
                    self._now.look()
                # In a thread: with many series it takes longer than the loop should be held.
                self._text = await asyncio.to_thread(
                    prometheus_client.generate_latest, self.registry
                )
                self._until = time.monotonic() + FRESH
        return self._text


class Ending:
    """How a session ends; whoever runs it says so by the close code."""

    outcome: Outcome = "error"

    def code(self, code: int, *, begun: bool = True) -> None:
        """Its WebSocket was closed with `code`, or 1006: the client left. `begun`: a stream was opened."""
        if code == 1006:
            self.outcome = "client_gone"
        elif not begun and code != 1000:
            self.outcome = "refused"
        else:
            self.outcome = {1000: "done", 1012: "restart"}.get(code, "error")  # type: ignore[assignment]


class _Now(Collector):
    """Gauges that need no counting, because somebody knows."""

    def __init__(self, metrics: Metrics, here: Context) -> None:
        self._metrics = metrics
        self._here = here
        self._seen: list[Metric] = []

    def look(self) -> None:
        """On the event loop, whose things these are."""
        self._seen = list(self._found())

    def collect(self) -> Iterable[Metric]:
        """What was seen; on any thread."""
        return self._seen

    def _found(self) -> Iterable[Metric]:
        here = self._here

        def gauge(name: str, text: str, value: float) -> Metric:
            return GaugeMetricFamily(f"open_speech_{name}", text, value=value)

        pulse = here.engine.pulse()
        yield gauge("ready", "new work is taken", here.ready and not here.draining)
        yield gauge("recordings_open", "recordings at work or waiting", pulse.recordings)
        yield gauge("engine_streams_open", "streams of the engine", pulse.streams)
        yield gauge("decodes_running", "batches at work", pulse.running)
        waiting = GaugeMetricFamily(
            "open_speech_decodes_waiting", "jobs that wait for a worker", labels=["kind"]
        )
        for kind, count in pulse.waiting.items():
            waiting.add_metric([kind], count)
        yield waiting
        yield gauge("downloads_running", "model downloads", here.catalogue.downloading())
        yield from self._memory()

    def _memory(self) -> Iterable[Metric]:
        loaded = GaugeMetricFamily(
            "open_speech_model_loaded", "models in memory", labels=["model", "backend"]
        )
        memory = GaugeMetricFamily(
            "open_speech_model_memory_bytes", "on its device, where known", labels=["model"]
        )
        resident = GaugeMetricFamily(
            "open_speech_runner_resident_memory_bytes", "of the model's process", labels=["model"]
        )
        seconds = GaugeMetricFamily(
            "open_speech_model_load_seconds", "that it took to load", labels=["model"]
        )
        seen = set()
        for info in self._here.engine.loaded():
            name = self._metrics.of(info.id).name
            if name in seen:
                continue
            seen.add(name)
            loaded.add_metric([name, info.backend], 1)
            seconds.add_metric([name], info.load_seconds)
            if info.memory is not None:
                memory.add_metric([name], info.memory)
            if info.pid is not None and (size := _resident(info.pid)) is not None:
                resident.add_metric([name], size)
        yield from (loaded, memory, resident, seconds)


def _resident(pid: int) -> int | None:
    """Bytes of a process in memory; None where Linux does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    text = await context(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


ENDPOINTS = (
    Endpoint(
        "GET",
        "/metrics",
        metrics,
        "health",
        "Figures for Prometheus",
        replies={200: Reply("in Prometheus' text format", {"text/plain": None})},
        scope="metrics",
        always=True,
    ),
)
