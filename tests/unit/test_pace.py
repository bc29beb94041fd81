"""How long a recording would wait is told by what those before it have left and how fast they went."""

import pytest

from streaming.pace import Pace


def test_a_recording_waits_for_its_turns_and_no_longer() -> None:
    pace = Pace()
    pace.begin("hour", 3600.0, 0)
    assert pace.wait(60.0, 0) == 0.0  # nobody knows yet
    pace.receive("hour", 600.0, 60.0)
    assert pace.speed(60.0) == pytest.approx(10.0)
    assert pace.wait(60.0, 60.0) == pytest.approx(6.0)  # a window each, in turn
    assert pace.wait(7200.0, 60.0) == pytest.approx(300.0)
    assert pace.wait(None, 60.0) == pytest.approx(300.0)
    pace.begin("minute", 60.0, 60.0)
    assert pace.wait(120.0, 60.0) == pytest.approx(18.0)
    assert pace.next_end(60.0) == pytest.approx(12.0)
    pace.end("minute")
    pace.end("hour")
    assert pace.wait(60.0, 60.0) == 0.0


def test_what_was_long_ago_counts_little_and_idle_time_not_at_all() -> None:
    pace = Pace()
    pace.begin("old", 1000.0, 0)
    for turn in range(1, 101):
        pace.receive("old", 10.0, 10.0 * turn)
    pace.end("old")
    pace.begin("new", 1000.0, 50_000)
    pace.receive("new", 500.0, 50_050)
    speed = pace.speed(50_050)
    assert speed is not None
    assert 4.0 < speed < 10.0
    for turn in range(10):
        pace.receive("new", 500.0, 50_100 + 50 * turn)
    assert pace.speed(50_550) == pytest.approx(10.0, rel=0.05)


def test_a_recording_of_unknown_length_keeps_nobody_out() -> None:
    pace = Pace()
    pace.begin("pipe", None, 0)
    pace.receive("pipe", 60.0, 60.0)
    assert pace.wait(3600.0, 60.0) == 0.0


def test_what_is_stuck_makes_those_who_come_wait_longer() -> None:
    pace = Pace()
    pace.begin("hour", 3600.0, 0)
    pace.receive("hour", 600.0, 60.0)
    soon, later = pace.wait(60.0, 60.0), pace.wait(60.0, 660.0)
    assert later > 5 * soon
