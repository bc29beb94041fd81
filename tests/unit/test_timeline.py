"""The timeline holds exactly what was appended and not forgotten."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.timeline import Timeline
from streaming.types import RATE


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 50_000)), max_size=30))
def test_reads_what_was_appended_wherever_it_was_cut(steps: list[tuple[int, int]]) -> None:
    timeline, position = Timeline(), 0
    for size, forget in steps:
        timeline.append(np.arange(position, position + size, dtype=np.float32))
        position += size
        timeline.forget(timeline.start + forget)
        assert timeline.end == position
        held = timeline.read(timeline.start, timeline.end)
        assert np.array_equal(held, np.arange(timeline.start, position, dtype=np.float32))


def test_memory_stays_bounded_over_hours() -> None:
    timeline = Timeline()
    for _ in range(3600):
        timeline.append(np.zeros(RATE, np.float32))
        timeline.forget(timeline.end - 5 * RATE)
    assert len(timeline._buffer) <= 16 * RATE


def test_reading_what_is_gone_or_not_there_yet_is_refused() -> None:
    timeline = Timeline(100)
    timeline.append(np.zeros(100, np.float32))
    timeline.forget(150)
    for start, end in ((100, 160), (150, 201), (180, 170)):
        with pytest.raises(IndexError):
            timeline.read(start, end)


def test_a_copy_is_read_so_that_a_decode_sees_no_later_audio() -> None:
    timeline = Timeline()
    timeline.append(np.ones(RATE, np.float32))
    taken = timeline.read(0, RATE)
    timeline.forget(RATE)
    timeline.append(np.zeros(30 * RATE, np.float32))
    assert taken.all()
