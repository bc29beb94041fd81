"""How late text is, on a clock that the test turns."""

import pytest

from streaming.events import Event, Final, Partial, SpeechStarted, SpeechStopped
from streaming.meter import ARRIVALS, Meter
from streaming.observer import Mode, Observer
from streaming.types import RATE


class Noted(Observer):
    def __init__(self) -> None:
        self.heard_seconds = 0.0
        self.delays: list[tuple[str, float]] = []
        self.speech = 0.0

    def heard(self, model: str, mode: Mode, seconds: float) -> None:
        assert (model, mode) == ("toy", "stream")
        self.heard_seconds += seconds

    def first_partial(self, model: str, delay: float) -> None:
        self.delays.append(("first", round(delay, 6)))

    def committed(self, model: str, delay: float) -> None:
        self.delays.append(("committed", round(delay, 6)))

    def final(self, model: str, delay: float) -> None:
        self.delays.append(("final", round(delay, 6)))

    def spoken(self, model: str, utterances: int, seconds: float) -> None:
        self.speech += seconds


def second(number: int) -> int:
    return number * RATE


def test_delays_count_from_the_arrival_of_the_audio_they_are_about() -> None:
    noted = Noted()
    meter = Meter(noted, "toy", RATE // 2)
    for number in range(1, 6):  # spoken in real time: the second number n is there at 100 + n
        meter.receive_audio(second(number), RATE, 100.0 + number)
    started: list[Event] = [SpeechStarted(0, second(1))]
    assert meter.receive_events(started, [], 102.1) == started
    meter.receive_events([Partial(0, 1, "", " a")], [], 102.4)
    meter.receive_events([Partial(0, 2, " a", " b")], [second(2)], 103.0)
    meter.receive_events([SpeechStopped(0, second(4))], [], 104.6)
    (final,) = meter.receive_events(
        [Final(0, " a b", (), second(1), second(4), "en")], [second(3)], 104.75
    )
    assert isinstance(final, Final)
    assert final.timing.delay == pytest.approx(0.75)
    assert noted.delays == [
        ("first", 0.4),  # speech began half a second into the second second, which was there at 102
        ("committed", 1.0),
        ("committed", 1.75),
        ("final", 0.75),
    ]
    assert noted.heard_seconds == 5
    assert noted.speech == 3


def test_audio_that_was_sent_at_once_counts_from_when_it_came() -> None:
    noted = Noted()
    meter = Meter(noted, "toy", 0)
    meter.receive_audio(second(60), second(60), 10.0)
    meter.receive_events([SpeechStopped(0, second(5))], [], 10.1)
    meter.receive_events([Final(0, "", (), 0, second(5), None)], [], 10.5)
    assert noted.delays == [("final", 0.5)]


def test_a_long_stream_takes_no_more_memory_than_two_minutes_of_it() -> None:
    meter = Meter(Noted(), "toy", 0)
    for number in range(1, 3600 * 10):
        meter.receive_audio(number * RATE // 10, RATE // 10, number / 10)
    assert len(meter._ends) == len(meter._times) <= 1210


def test_what_is_remembered_is_bounded_and_the_newest_is_exact() -> None:
    noted = Noted()
    meter = Meter(noted, "toy", 0)
    for number in range(1, 5 * ARRIVALS):
        meter.receive_audio(number, 1, float(number))
    assert len(meter._ends) <= ARRIVALS
    last = 5 * ARRIVALS - 1
    meter.receive_events([], [last, last - 10], last + 2.0)
    assert noted.delays == [("committed", 2.0), ("committed", 12.0)]
