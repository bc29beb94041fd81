"""Where audio was left out, times go on as they were."""

from hypothesis import given
from hypothesis import strategies as st

from open_speech_client import Ack, Final, Marker, Partial, SpeechStarted, SpeechStopped, Word
from server.gaps import MOST, Gaps


def test_events_are_placed_where_they_were_heard() -> None:
    gaps = Gaps()
    gaps.note(0.0, 0.0)
    gaps.note(2.0, 10.0)
    gaps.note(3.0, 10.0)
    gaps.note(4.0, 10.5)
    across = (Word("one", 1.5, 2.0, 0.9), Word("two", 2.0, 2.5, 0.9), Word("three", 3.9, 4.1, 0.9))
    heard = (
        Word("one", 1.5, 2.0, 0.9),
        Word("two", 12.0, 12.5, 0.9),
        Word("three", 13.9, 14.6, 0.9),
    )
    for event, expected in (
        (SpeechStarted(0, 0, 1.0), SpeechStarted(0, 0, 1.0)),
        (SpeechStarted(0, 0, 2.0), SpeechStarted(0, 0, 12.0)),
        (SpeechStopped(0, 0, 2.0), SpeechStopped(0, 0, 2.0)),
        (Marker(0, "x", 4.0), Marker(0, "x", 14.0)),
        (
            Partial(0, 0, 1, "one two", " three", 9, words=across),
            Partial(0, 0, 1, "one two", " three", 9, words=heard),
        ),
        (
            Final(0, 0, "one two three", 1.5, 4.1, 9, words=across),
            Final(0, 0, "one two three", 1.5, 14.6, 9, words=heard),
        ),
        (Ack(0, 9), Ack(0, 9)),
    ):
        assert gaps.placed(event) == expected


def test_without_a_gap_nothing_changes() -> None:
    gaps = Gaps()
    gaps.note(1.0, 0.0)
    assert gaps.moment(0.1 + 0.2) == 0.1 + 0.2


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), max_size=30))
def test_every_second_that_was_heard_keeps_its_place(parts: list[tuple[int, int]]) -> None:
    gaps, sent, missing = Gaps(), 0, 0
    heard: list[int] = []
    for length, dropped in parts:
        missing += dropped
        gaps.note(sent, missing)
        heard += range(sent + missing, sent + missing + length)
        sent += length
    for at, when in enumerate(heard):
        assert gaps.moment(float(at)) == when
        assert gaps.moment(at + 1.0, end=True) == when + 1


def test_old_gaps_are_forgotten() -> None:
    gaps = Gaps()
    for number in range(1, 3 * MOST):
        gaps.note(float(number), float(number))
    assert len(gaps._known) == MOST
    assert gaps.moment(3.0 * MOST) == 6.0 * MOST - 1
