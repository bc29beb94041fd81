"""How late a stream's text is, counted from when its audio came in, and where a recording's time went. Pure: time comes
in as an argument."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from streaming.events import Event, Final, Partial, SpeechStarted, SpeechStopped
from streaming.observer import Observer
from streaming.types import RATE, Spent, Work

ARRIVALS = 4096
"""Messages remembered at most, however short they are."""
KEPT = 60 * RATE
"""Samples whose arrival is remembered: twice the lag at which senders are slowed down."""


class Meter:
    """One stream's. Audio that a client sends faster than it was spoken is measured from its arrival, too."""

    def __init__(self, observer: Observer, model: str, pre_roll: int) -> None:
        """`pre_roll` in samples: an utterance's audio begins so much before its speech."""
        self._observer = observer
        self._model = model
        self._pre_roll = pre_roll
        self._ends: list[int] = []  # of the messages, in samples; bounded by ARRIVALS
        self._times: list[float] = []
        self._began = 0  # of the utterance that was begun last
        self._stopped: dict[
            int, int
        ] = {}  # where speech ended, until the final; bounded by the lag

    def receive_audio(self, end: int, length: int, now: float) -> None:
        """`length` samples came, the last of them before sample `end`."""
        self._observer.heard(self._model, "stream", length / RATE)
        half = len(self._ends) // 2
        if half and (2 * half >= ARRIVALS or self._ends[half] < end - KEPT):
            del self._ends[:half], self._times[:half]
        self._ends.append(end)
        self._times.append(now)

    def receive_events(
        self, events: Sequence[Event], settled: Sequence[int], now: float
    ) -> list[Event]:
        """The same events, the finals with their delay; `settled` are the ends of words that were committed."""
        for end in settled:
            self._observer.committed(self._model, now - self._arrival(end, now))
        return [self._measured(event, now) for event in events]

    def _measured(self, event: Event, now: float) -> Event:
        match event:
            case SpeechStarted(at=at):
                self._began = at + self._pre_roll
            case Partial(revision=1):
                self._observer.first_partial(self._model, now - self._arrival(self._began, now))
            case SpeechStopped(utterance, at):
                self._stopped[utterance] = at
            case Final():
                at = self._stopped.pop(event.utterance, event.end)
                delay = now - self._arrival(at, now)
                self._observer.final(self._model, delay)
                self._observer.spoken(self._model, 1, (event.end - event.start) / RATE)
                return replace(event, timing=replace(event.timing, delay=delay))
            case _:
                pass
        return event

    def _arrival(self, sample: int, now: float) -> float:
        """When the audio before `sample` was complete."""
        at = bisect_left(self._ends, sample)
        return self._times[at] if at < len(self._times) else now


class Stages:
    """Where the time of one recording goes."""

    def __init__(self, now: float) -> None:
        self._asked = now
        self._load = 0.0
        self.container = 0.0
        self.detection = 0.0
        """Seconds that whoever does it adds."""
        self._waiting: list[tuple[float, float]] = []
        self._working: list[tuple[float, float]] = []  # bounded by the recording's windows
        self._work: Work | None = None

    def begin(self, now: float) -> None:
        """The model is there."""
        self._load = now - self._asked

    def receive_job(
        self, added: float, started: float | None, finished: float, work: Work | None = None
    ) -> None:
        """A window came back."""
        if started is not None:
            self._waiting.append((added, finished))
            self._working.append((started, finished))
        if work is not None:
            so_far = self._work or Work()
            self._work = Work(
                so_far.encode + work.encode,
                so_far.generate + work.generate,
                so_far.align + work.align,
            )

    def spent(self) -> Spent:
        """All of it so far."""
        working = _covered(self._working)
        queue = _covered(self._waiting) - working
        return Spent(self._load, self.container, self.detection, queue, working, self._work)


def _covered(stretches: list[tuple[float, float]]) -> float:
    """The length of what any of them covers."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(stretches):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
