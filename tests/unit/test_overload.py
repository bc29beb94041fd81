"""More streams than the machine can serve, in virtual time: those that are taken keep every word and their finals, the
rest are told at once."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from streaming.backends.base import Window
from streaming.backends.scripted import CAPABILITIES
from streaming.events import Event, Final, Partial, SpeechStopped
from streaming.scheduler import Batch, Lane, Scheduler
from streaming.segmenter import FRAME
from streaming.session import Session
from streaming.types import RATE, Options
from tests.drive import honest, loudness, speak

TICK = 2 * FRAME
"""Samples a message."""


@dataclass(eq=False)
class Talker:
    """A client that speaks as people do: sentences of a few words, pauses between."""

    seed: int
    opened: float
    seconds: float
    said: list[int | float] = field(default_factory=list)
    events: list[tuple[float, Event]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    at: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        self.said = [chance.uniform(0.1, 2.0)]
        while sum(0.25 if isinstance(each, int) else each for each in self.said) < self.seconds:
            self.said += [chance.randrange(60) for _ in range(chance.randint(4, 12))]
            self.said.append(chance.uniform(0.9, 2.0))
        self.audio = speak(self.said)
        self.session = Session(
            Options(language="en"), CAPABILITIES, lambda window: window.decoding.temperature
        )

    @property
    def finals(self) -> list[tuple[float, Final]]:
        return [(when, each) for when, each in self.events if isinstance(each, Final)]

    def delays(self) -> list[float]:
        """From the end of each utterance to its final; a pause of 0.5 s is part of it."""
        stopped = {
            each.utterance: each.at for _, each in self.events if isinstance(each, SpeechStopped)
        }
        return [when - self.opened - stopped[each.utterance] / RATE for when, each in self.finals]


def serve(
    arrivals: list[tuple[float, float]], *, workers: int, window: float
) -> tuple[list[Talker], list[tuple[float, float]], Scheduler]:
    """Who comes at `(when, for so many seconds)`: those that were taken, when and with which hint others were not, and
    the scheduler at the end. A window costs a worker `window` seconds, in a batch as well."""
    scheduler = Scheduler(workers, 8)
    taken: list[Talker] = []
    refused: list[tuple[float, float]] = []
    coming = sorted(arrivals)
    running: list[tuple[float, Batch]] = []
    now, step = 0.0, TICK / RATE

    def pump(talker: Talker) -> None:
        talker.session.speculate = not scheduler.crowded
        for job in talker.session.jobs():
            job.deadline = now
            scheduler.add(job, now)
        talker.events += [(now, event) for event in talker.session.events()]

    def start() -> None:
        while (batch := scheduler.take(now)) is not None:
            running.append((now + window * len(batch.jobs), batch))

    while coming or not all(each.session.finished for each in taken):
        now += step
        assert now < 600, "it never ends"
        for due in sorted([each for each in running if each[0] <= now], key=lambda each: each[0]):
            running.remove(due)
            scheduler.done(due[1], window * len(due[1].jobs), now)
            for job in due[1].jobs:
                assert isinstance(job.window, Window)
                job.result, job.finished = honest(job.window), now
                talker = next(each for each in taken if each.session is job.owner)
                talker.session.receive_result(job)
                pump(talker)
            start()
        while coming and coming[0][0] <= now:
            _, seconds = coming.pop(0)
            hint = scheduler.admit(now)
            if hint is not None:
                refused.append((now, hint))
                continue
            taken.append(Talker(len(taken), now, seconds))
            scheduler.live_streams += 1
        for talker in taken:
            session = talker.session
            if session.finished:
                continue
            if talker.at < len(talker.audio):
                session.receive_audio(talker.audio[talker.at : talker.at + TICK])
                talker.at += TICK
            elif not talker.ended:
                talker.ended = True
                session.receive_end()
                scheduler.live_streams -= 1
            frames = session.frames()
            session.receive_probabilities(frames, loudness(frames))
            talker.lags.append(session.lag / RATE)
            pump(talker)
        start()
    return taken, refused, scheduler


def words(talker: Talker) -> str:
    return "".join(final.text for _, final in talker.finals).strip()


def check(taken: list[Talker]) -> None:
    """Every word, once; what was committed stays."""
    for talker in taken:
        assert words(talker) == " ".join(
            f"w{each}" for each in talker.said if isinstance(each, int)
        )
        committed: dict[int, str] = {}
        for _, event in talker.events:
            if isinstance(event, Partial):
                assert event.committed.startswith(committed.get(event.utterance, ""))
                committed[event.utterance] = event.committed
            elif isinstance(event, Final):
                assert event.text.startswith(committed.get(event.utterance, ""))


def at95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


def test_twice_the_load_keeps_every_word_of_those_it_takes() -> None:
    # Two workers and 0.1 s a window: at their slowest, 30 streams ask for all there is.
    few, _, _ = serve([(at / 5, 20.0) for at in range(15)], workers=2, window=0.1)
    taken, refused, _ = serve([(at / 5, 15.0) for at in range(90)], workers=2, window=0.1)
    check(few)
    check(taken)
    assert len(taken) + len(refused) == 90
    assert len(taken) >= 20
    assert len(refused) >= 20
    assert all(1.0 <= hint <= 60.0 for _, hint in refused)
    # Finals go first: overload is for partials to bear.
    finals = at95([delay for each in taken for delay in each.delays()])
    assert finals <= 1.0 + at95([delay for each in few for delay in each.delays()])

    def partials(talkers: list[Talker]) -> float:
        return sum(
            isinstance(event, Partial) for each in talkers for _, event in each.events
        ) / len(talkers)

    assert partials(taken) < partials(few)


def test_a_crowd_that_comes_at_once_is_taken_as_far_as_there_is_room() -> None:
    before = [(0.1, 8.0)] * 5  # what a window costs is known from them
    taken, refused, _ = serve(before + [(5.0, 10.0)] * 100, workers=2, window=0.1)
    check(taken)
    assert 40 <= len(taken) < 80
    assert len(refused) == 105 - len(taken)
    assert all(5.0 <= when < 5.1 for when, _ in refused)  # at once


def test_lag_tells_how_late_text_is() -> None:
    alone, _, _ = serve([(0.0, 20.0)], workers=2, window=0.05)
    crowd, _, _ = serve([(at / 5, 20.0) for at in range(40)], workers=2, window=0.1)
    assert max(alone[0].lags) <= 0.5
    assert at95([lag for each in crowd for lag in each.lags]) > max(alone[0].lags)


def test_what_was_too_much_is_forgotten_when_it_is_over() -> None:
    first = [(0.1, 10.0)] * 80
    later = [(40.0, 5.0)] * 10
    taken, refused, scheduler = serve(first + later, workers=2, window=0.1)
    check(taken)
    assert not refused
    assert scheduler.wait(100.0) == scheduler.wait(100.0, Lane.FINAL) == 0.0
