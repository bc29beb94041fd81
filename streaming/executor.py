"""A loaded model at work: its scheduler on the event loop, its decodes on worker threads.

Everything but `decode` itself happens on the loop, so that nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from streaming.backends.base import Hypothesis, Step, StepBackend, StepResult, Window, WindowBackend
from streaming.backends.stepwise import Steps, whole
from streaming.errors import BackendError, ModelGone, ModelResting, OpenSpeechError
from streaming.observer import Decided, Kind, Observer
from streaming.pace import Pace
from streaming.remote import RemoteBackend
from streaming.scheduler import Batch, Job, Lane, Scheduler
from streaming.types import ModelInfo

log = logging.getLogger(__name__)

Deliver = Callable[[Job], None]
Fail = Callable[[OpenSpeechError], None]
MARGIN = 0.1
"""Seconds after a model's rest, lest it be asked a moment too early."""
KINDS: dict[Lane, Kind] = {
    Lane.FINAL: "final",
    Lane.SPECULATIVE: "speculative",
    Lane.PARTIAL: "partial",
    Lane.BULK: "file",
}


class Executor:
    """Serves the jobs of many owners with one backend. Use it from the event loop's thread only."""

    def __init__(
        self,
        backend: WindowBackend | StepBackend,
        info: ModelInfo,
        workers: int,
        observer: Observer | None = None,
    ) -> None:
        self._given = backend
        self.backend = whole(backend)
        self._steps = Steps(backend) if isinstance(backend, StepBackend) else None
        self.info = info
        self.observer = observer or Observer()
        self.scheduler = Scheduler(workers, backend.capabilities.max_batch)
        self.pace = Pace()
        """Of the recordings; whoever reads them tells."""
        self._owners: dict[Hashable, tuple[Deliver, Fail]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=f"decode {info.id}")
        self._loop = asyncio.get_running_loop()
        if isinstance(backend, RemoteBackend):
            backend.restarted = self._restarted
        self._closed = False
        self._later: asyncio.TimerHandle | None = None

    @property
    def information(self) -> ModelInfo:
        """What `info` says, and its process now."""
        if not isinstance(self._given, RemoteBackend):
            return self.info
        return replace(self.info, pid=self._given.pid, restarts=self._given.restarts)

    def attach(self, owner: Hashable, deliver: Deliver, fail: Fail, *, live: bool) -> None:
        """From now on `deliver` is called, on the loop, with every finished job of `owner`.

        `fail` is called once, if the model is taken away by force.
        """
        self._owners[owner] = deliver, fail
        self.scheduler.live_streams += live

    def detach(self, owner: Hashable, *, live: bool) -> None:
        """Forget `owner` and drop its waiting jobs; results of running ones go nowhere."""
        if self._owners.pop(owner, None) is not None:
            self.scheduler.live_streams -= live
            self.scheduler.cancel(owner)
            self._drop(owner)
            self._dispatch()

    def free_for(self, owner: Hashable) -> int:
        """Workers that `owner` has for itself: all on a CPU where nobody else uses the model, else one."""
        alone = self.info.device == "cpu" and set(self._owners) <= {owner}
        return self.scheduler.workers if alone else 1

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs; they start as soon as a worker is free."""
        now = time.monotonic()
        for job in jobs:
            if self._closed:
                job.result = ModelGone(f"model {self.info.id} was unloaded; ask again to load it")
                self._loop.call_soon(self._deliver, job)
                continue
            if not job.deadline:
                job.deadline = now
            dropped = self.scheduler.add(job, now)
            if dropped is not None and dropped.lane is job.lane is Lane.PARTIAL:
                self.observer.shed(self.info.id)
        self._dispatch()

    async def close(self, force: bool) -> None:
        """Free the model. Decodes that run end first, unless `force`: then their owners get ModelGone at once."""
        self._closed = True
        if self._later is not None:
            self._later.cancel()
        if force:
            gone = ModelGone(
                f"model {self.info.id} was unloaded while in use; ask again to load it"
            )
            for owner, (_, fail) in list(self._owners.items()):
                self.scheduler.cancel(owner)
                fail(gone)
            if isinstance(self._given, RemoteBackend):
                self._given.interrupt()
        # A thread of its own: a decode may take minutes, and neither what asyncio's threads do nor another model that
        # is closed shall wait for it.
        last = ThreadPoolExecutor(1, thread_name_prefix=f"close {self.info.id}")
        last.submit(self._pool.shutdown, wait=True)
        closed = self._loop.run_in_executor(last, self.backend.close)
        last.shutdown(wait=False)
        await closed

    def _dispatch(self) -> None:
        while not self._closed and (batch := self.scheduler.take(time.monotonic())) is not None:
            self._pool.submit(self._work, batch)
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if not self._closed and (rest := self.scheduler.rest(time.monotonic())) is not None:
            self._later = self._loop.call_later(rest, self._dispatch)

    def _work(self, batch: Batch) -> None:
        """On a worker thread."""
        started = time.monotonic()
        try:
            for job, result in zip(batch.jobs, self._results(batch.jobs), strict=True):
                job.result = result
        except Exception as error:
            for job in batch.jobs:
                job.result = self._alone(job) if len(batch.jobs) > 1 else _fault(error)
        ended = time.monotonic()
        try:
            self._loop.call_soon_threadsafe(self._done, batch, started, ended)
        except RuntimeError:
            log.debug("the event loop closed before a decode was done")

    def _alone(self, job: Job) -> Hypothesis | StepResult | Exception:
        """The answer to one job of a batch that failed: what is wrong with one is not the others' fault."""
        if isinstance(job.window, Step) and not job.window.first:
            return BackendError("what was heard is lost")  # its session begins anew
        try:
            return self._results([job])[0]
        except Exception as error:
            return _fault(error)

    def _results(self, jobs: list[Job]) -> Sequence[Hypothesis | StepResult]:
        windows = [job.window for job in jobs if isinstance(job.window, Window)]
        if windows:
            return self.backend.decode(windows)
        assert self._steps is not None
        return self._steps.run(
            [(job.owner, job.tag, job.window) for job in jobs if isinstance(job.window, Step)]
        )

    def _restarted(self) -> None:
        """On a worker thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.observer.restarted, self.info.id)

    def _drop(self, owner: Hashable) -> None:
        """Free what a step recogniser keeps of `owner`; what is at work comes back here when it is done."""
        if self._steps is not None and not self._closed and not self.scheduler.runs(owner):
            self._pool.submit(self._steps.drop, owner)

    def _done(self, batch: Batch, started: float, ended: float) -> None:
        self.scheduler.done(batch, ended - started, ended)
        self._dispatch()  # first keep the workers busy, then think about the results
        self.observer.decoded(
            self.info.id,
            [KINDS[job.lane] for job in batch.jobs],
            [max(0.0, started - job.added) for job in batch.jobs],
            ended - started,
        )
        for job in batch.jobs:
            job.started, job.finished = started, ended
            if self._waits(job):
                continue
            if isinstance(job.result, Exception):
                self.observer.decode_failed(self.info.id)
            self._deliver(job)

    def _waits(self, job: Job) -> bool:
        """A final whose model rests waits for the end of it, once: its audio is here, and would be lost with it.

        What was decoded ahead of an endpoint does so too, as the final that it may be by then.
        """
        rest = job.result
        if not isinstance(rest, ModelResting) or job.waited or job.owner not in self._owners:
            return False
        if job.lane not in (Lane.FINAL, Lane.SPECULATIVE):
            return False
        # Bounded as waiting finals are: by the audio that a stream may be behind.
        job.lane, job.waited, job.result = Lane.FINAL, True, None
        self._loop.call_later(rest.retry_after + MARGIN, self._again, job)
        return True

    def _again(self, job: Job) -> None:
        if job.owner in self._owners:
            self.submit([job])

    def _deliver(self, job: Job) -> None:
        if job.owner in self._owners:
            deliver, fail = self._owners[job.owner]
            try:
                deliver(job)
            except Exception:  # its own fault: the others of the batch get their answers
                log.exception("a result could not be received")
                fail(
                    BackendError(
                        "this stream cannot go on; open a new one, and see the server's log"
                    )
                )
        else:
            self._drop(job.owner)


def _fault(error: Exception) -> OpenSpeechError:
    if isinstance(error, OpenSpeechError):
        return error
    log.error("a decode failed", exc_info=error)
    return BackendError("the recogniser failed on this audio; try again, and see the server's log")


def decided(job: Job) -> Decided:
    """What became of a job, for whoever keeps a record."""
    started = job.added if job.started is None else job.started
    match job.result:
        case Hypothesis(text=text):
            heard: str | None = text
        case StepResult(words=words):
            heard = "".join(word.text for word in words)
        case _:
            heard = None
    queued, took = max(0.0, started - job.added), max(0.0, job.finished - started)
    return Decided(KINDS[job.lane], job.start, job.edge, queued, took, heard)
