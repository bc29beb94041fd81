"""Which decodes run next, and which of them together. Pure: time comes in as an argument.

Final before speculative before partial before bulk; within a class the earliest deadline, and among recordings turn by
turn; at most one pending job of a stream below final, where the newer replaces the older. A batch takes the
first job and fills up with others of its key, while the predicted time stays within a budget. Nothing waits while a
worker is idle. Learned from RealtimeSTT's `FairInferenceQueue` and text-embeddings-inference's queue.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum

from streaming.backends.base import Hypothesis, Step, StepResult, Window


class Lane(IntEnum):
    """Classes of work, most urgent first."""

    FINAL = 0
    SPECULATIVE = 1
    PARTIAL = 2
    BULK = 3


@dataclass(slots=True, eq=False)
class Job:
    """One window to decode for one session or recording."""

    owner: Hashable
    lane: Lane
    window: Window | Step
    key: Hashable
    """Windows of one key may share a batch."""
    tag: object = None
    """The owner's own; comes back with the result."""
    start: int = 0
    edge: int = 0
    """Where the window lies in the owner's audio, in samples."""
    deadline: float = 0.0
    """Seconds on the caller's clock; orders jobs of one lane. In bulk, the turn that the scheduler gives it."""
    added: float = 0.0
    started: float | None = None
    """None while it waits."""
    finished: float = 0.0
    waited: bool = False
    """It has waited out a rest of its model, as it does once."""
    result: Hypothesis | StepResult | Exception | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs of one key that run in one call."""

    jobs: list[Job]
    lane: Lane
    predicted: float | None
    cancelled: bool = field(default=False)


@dataclass(slots=True)
class _Cost:
    """Seconds of a batch of n windows: fixed + each * n, fitted with forgetting."""

    n: float = 0.0
    nn: float = 0.0
    t: float = 0.0
    nt: float = 0.0
    weight: float = 0.0

    def learn(self, size: int, seconds: float) -> None:
        keep = 0.9
        self.weight = self.weight * keep + 1
        self.n = self.n * keep + size
        self.nn = self.nn * keep + size * size
        self.t = self.t * keep + seconds
        self.nt = self.nt * keep + size * seconds

    @property
    def tried(self) -> bool:
        """Batches of more than one size were seen."""
        return self._spread >= 0.05

    @property
    def _spread(self) -> float:
        mean = self.n / self.weight
        return self.nn / self.weight - mean * mean

    def predict(self, size: int) -> float:
        mean_n, mean_t = self.n / self.weight, self.t / self.weight
        if not self.tried:  # one size only so far: believe that every window costs the same
            return mean_t * size / mean_n
        slope = (self.nt / self.weight - mean_n * mean_t) / self._spread
        slope = min(max(slope, 0.0), mean_t / mean_n)
        return max(mean_t + slope * (size - mean_n), 0.0)


class Scheduler:
    """Add jobs; take batches whenever a worker is free; report each when it is done."""

    WORTH = 0.9
    """What a window may cost in a batch, as a share of what it costs alone, for batches to be worth their delay."""
    TRY = 64
    """Batches after which one of several windows is tried, where they were not worth it."""
    BUDGET = 0.12
    """Seconds a batch may take, if one window takes less than half of it."""
    FELT = 0.1
    """Seconds that partials wait, smoothed, from which on recordings get their share and no more."""
    CROWDED = 0.5
    """Seconds that partials wait, smoothed, from which on decoding ahead of the endpoint is a luxury."""
    FULL = 2.0
    """Seconds that partials wait, smoothed, from which on another stream would make all of them useless."""
    LATE = 1.0
    """Seconds that finals wait, smoothed, from which on no other stream should be taken: streams without partials show
    their load there alone."""
    SPEAKING = 0.6
    """Share of a stream's time in which somebody speaks."""
    BULK_SHARE = 0.1
    """Share of the work that recordings get even while streams would take it all."""
    REST = 6.0
    """Seconds that recordings rest after a second of work of theirs, times the share of the workers that live decodes
    keep busy: what streams leave idle is not all theirs, since a long window delays whatever comes meanwhile. With
    eight streams on two cores they work a third of the time (`tests/perf/streaming.py --bulk`)."""
    RECENT = 5.0
    """Seconds over which it is seen how busy live decodes are."""

    def __init__(self, workers: int, max_batch: int) -> None:
        self.workers = workers
        self.max_batch = max_batch
        self.live_streams = 0
        """Streams open now: while there are any, bulk leaves them a worker."""
        self._delay = 0.0  # seconds that partials waited of late
        self._late = 0.0  # the same of finals
        self._window = 0.05  # seconds of a worker that a live window took of late; at first a guess
        self._admitted = -1e9  # when the last stream was taken
        self._crowded = False
        # Bounded: below final by one job an owner; finals by the audio that back-pressure lets a stream be
        # behind; bulk by the lookahead of each recording.
        self._waiting: dict[Lane, list[Job]] = {lane: [] for lane in Lane}
        self._running: list[Batch] = []
        self._costs: dict[Hashable, _Cost] = {}  # bounded: keys are few; see done()
        self._served = {False: 0.0, True: 0.0}  # recent seconds of work, by being bulk
        self._batches = 0.0  # that these are of
        self._busy = 0.0  # workers that live decodes kept busy of late
        self._seen = -1e9  # when that was
        self._lived = -1e9  # when the last live decode ended
        self._rested = -1e9  # when recordings will have rested
        self._shared = 0.0  # cost of a window in a batch as a share of its cost alone, smoothed
        self._since = 0  # batches since one of several windows
        # Start-time fair queueing (Goyal, Vin, Cheng, 1996), a window a turn: a short recording does not wait until
        # the long ones before it are done.
        self._turn = 0.0
        self._turns: dict[Hashable, float] = {}  # of each recording's next window; cancel() forgets

    def add(self, job: Job, now: float) -> Job | None:
        """Queue `job`; the pending one of its owner that it makes pointless is dropped and returned.

        A final makes only work of its own tag pointless: the next utterance may have begun already.
        """
        job.added = now
        dropped = None
        if job.lane is not Lane.BULK:
            for lane in (Lane.SPECULATIVE, Lane.PARTIAL):
                for other in self._waiting[lane]:
                    if other.owner == job.owner and (
                        job.lane is not Lane.FINAL or other.tag is job.tag
                    ):
                        self._waiting[lane].remove(other)
                        dropped = other
                        if lane is job.lane:
                            # It keeps its place in the queue: who asks often must not wait longer for it.
                            job.added, job.deadline = other.added, other.deadline
                        break
        else:
            job.deadline = max(self._turn, self._turns.get(job.owner, 0.0))
            self._turns[job.owner] = job.deadline + 1
        queue = self._waiting[job.lane]
        at = len(queue)
        while at > 0 and queue[at - 1].deadline > job.deadline:
            at -= 1
        queue.insert(at, job)
        return dropped

    def cancel(self, owner: Hashable) -> list[Job]:
        """Drop everything of `owner` that has not started; it will not come back."""
        dropped = []
        self._turns.pop(owner, None)
        for lane, queue in self._waiting.items():
            dropped += [job for job in queue if job.owner == owner]
            self._waiting[lane] = [job for job in queue if job.owner != owner]
        return dropped

    def take(self, now: float) -> Batch | None:
        """The next batch for a free worker, or None if nothing may run now."""
        if len(self._running) >= self.workers:
            return None
        lane = self._lane(now)
        if lane is None:
            return None
        queue = self._waiting[lane]
        first = queue[0]
        chosen, budget = [first], self._budget(first.key)
        most = self.max_batch if self._worth() else 1
        if lane is Lane.BULK:
            self._turn = first.deadline
            # Spread over the workers that are free: one that decodes two windows while another idles wastes it.
            free = max(1, min(self._room(), self.workers) - len(self._running))
            most = min(most, max(1, -(-len(queue) // free)))
            if self.live_streams:
                budget = self.BUDGET
        # A batch fills up with work of its key: first of its lane, then of the ones below, bulk excepted.
        lanes = [lane] if lane is Lane.BULK else [each for each in Lane if lane <= each < Lane.BULK]
        for each in lanes:
            for job in self._waiting[each]:
                if len(chosen) >= most:
                    break
                if job is first or job.key != first.key:
                    continue
                predicted = self._predict(first.key, len(chosen) + 1)
                if predicted is None or predicted > budget:
                    break
                chosen.append(job)
        for job in chosen:
            self._waiting[job.lane].remove(job)
            job.started = now
            if job.lane is Lane.PARTIAL:
                self._delay += 0.05 * (now - job.added - self._delay)
            elif job.lane is Lane.FINAL:
                self._late += 0.2 * (now - job.added - self._late)
        self._since = 0 if len(chosen) > 1 else self._since + 1
        batch = Batch(chosen, lane, self._predict(first.key, len(chosen)))
        self._running.append(batch)
        return batch

    def done(self, batch: Batch, seconds: float, now: float) -> None:
        """`batch` took `seconds` of its worker's time."""
        self._running.remove(batch)
        if len(self._costs) > 256:
            self._costs.clear()  # prompts of every length make keys; the costs are learned again at once
        key, size = batch.jobs[0].key, len(batch.jobs)
        cost = self._costs.setdefault(key, _Cost())
        if size > 1 and cost.weight and (cost.tried or cost.n <= 1.01 * cost.weight):
            alone = max(cost.predict(1), 1e-6)
            self._shared += 0.2 * (min(2.0, seconds / size / alone) - self._shared)
        cost.learn(size, seconds)
        if not self._waiting[Lane.PARTIAL]:
            self._delay *= 0.8  # nobody waits: what was is over
        if not self._waiting[Lane.FINAL]:
            self._late *= 0.8
        if batch.lane is not Lane.BULK:
            self._window += 0.1 * (seconds / size - self._window)
        for bulk in self._served:
            self._served[bulk] *= 0.98
        self._served[batch.lane is Lane.BULK] += seconds
        self._batches = 0.98 * self._batches + 1
        self._busy *= math.exp((self._seen - now) / self.RECENT)
        self._seen = now
        if batch.lane is Lane.BULK:
            self._rested = now + self.REST * self._busy / self.workers * seconds
        else:
            self._busy += seconds / self.RECENT
            self._lived = now

    def rest(self, now: float) -> float | None:
        """Seconds until recordings that wait have rested; None if none waits or they need no rest: nothing but time
        ends it, so somebody has to come back then."""
        if not self.live_streams or not self._waiting[Lane.BULK]:
            return None
        until = self._rested
        if self._delay > self.FELT:
            # Nobody may ever speak again to show that it is over: with no live decode it is forgotten in seconds.
            until = max(until, self._lived + math.log(self._delay / self.FELT))
        return until - now if until > now else None

    def waiting(self, lane: Lane | None = None) -> int:
        """Jobs queued, of one lane or of all."""
        return sum(len(queue) for each, queue in self._waiting.items() if lane in (None, each))

    @property
    def crowded(self) -> bool:
        """Partials wait so long that streams should not decode finals ahead of the endpoint."""
        if self._delay > self.CROWDED:
            self._crowded = True
        elif self._delay < self.CROWDED / 3:
            self._crowded = False
        return self._crowded

    def wait(self, now: float, lane: Lane = Lane.PARTIAL) -> float:
        """Seconds that work of a live lane waits for a worker: smoothed, or what the oldest of it waits already."""
        if not self._waiting[lane]:
            return 0.0
        oldest = now - min(job.added for job in self._waiting[lane])
        return max(self._late if lane is Lane.FINAL else self._delay, oldest)

    def admit(self, now: float) -> float | None:
        """Take another stream: None, or why not: in so many seconds another try makes sense.

        What streams wait decides. But those that came just now have asked for nothing yet: where by what windows cost
        not even a partial every `FULL` seconds is to be had for all, they come one by one, so that the wait can tell.
        """
        wait = max(self.wait(now), self.FULL / self.LATE * self.wait(now, Lane.FINAL))
        # Where one window takes long, waiting for two of them is no sign of too many streams.
        if wait > self.FULL * max(1.0, 2 * self._window):
            return min(2 * wait, 30.0)
        need = self.live_streams * self._window * self.SPEAKING / self.FULL
        if need > self.workers:
            pause = self._admitted + 16 / self.live_streams - now
            if pause > 0:
                return 1.0 + pause + wait
        self._admitted = now
        return None

    def runs(self, owner: Hashable) -> bool:
        """A job of `owner` is at work."""
        return any(job.owner == owner for batch in self._running for job in batch.jobs)

    @property
    def running(self) -> int:
        """Batches at work."""
        return len(self._running)

    def _lane(self, now: float) -> Lane | None:
        bulk_running = sum(batch.lane is Lane.BULK for batch in self._running)
        bulk_may = bool(self._waiting[Lane.BULK]) and bulk_running < self._room()
        if bulk_may and not bulk_running:
            total = self._served[False] + self._served[True]
            seen = total > 1.0 or self._batches > 10  # enough to tell
            if seen and self._served[True] < self.BULK_SHARE * total:
                return Lane.BULK
        # A long window that begins beside live decodes and takes the last free worker delays the next live one.
        beside = bulk_running < len(self._running) and len(self._running) + 1 >= self.workers
        if self.live_streams and (beside or self.rest(now) is not None):
            bulk_may = False
        for lane in Lane:
            if self._waiting[lane] and (lane is not Lane.BULK or bulk_may):
                return lane
        return None

    def _room(self) -> int:
        """Workers that bulk may hold."""
        return self.workers - 1 if self.live_streams and self.workers > 1 else self.workers

    def _worth(self) -> bool:
        """Batches of several windows cost less than their windows one by one. On a CPU they do not, and a final waits
        for a batch of others where it would wait for one window."""
        return self._shared < self.WORTH or self._since >= self.TRY

    def _predict(self, key: Hashable, size: int) -> float | None:
        cost = self._costs.get(key)
        return None if cost is None else cost.predict(size)

    def _budget(self, key: Hashable) -> float:
        one = self._predict(key, 1)
        return self.BUDGET if one is None else max(self.BUDGET, 2 * one)
