"""Streaming equals offline: a recording through both machines has the same utterances and the same words."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.backends.scripted import CAPABILITIES
from streaming.events import Event, Final, SpeechStopped
from streaming.recording import TRAIL
from streaming.types import Options, Samples, Segment, Summary
from tests.drive import WHISPER, delays, drive, read, sizes, speak, talk

WORDS = Options(words=True)


def lecture(seed: int) -> list[int | float]:
    """Speech that has to be split, with pauses at which it may be."""
    chance = random.Random(seed)
    said: list[int | float] = []
    for _ in range(6):
        said += [chance.randrange(51) for _ in range(chance.randrange(12, 30))]
        said.append(chance.choice([0.2, 0.2, 0.4, 0.7]))
    return said


def pieces(events: list[Event], audio: Samples) -> list[Samples]:
    """What a recording has to hear, by what a stream found: its utterances, each with the silence after it that only
    a recording keeps, and none of it twice."""
    split = {event.utterance: event.split for event in events if isinstance(event, SpeechStopped)}
    found, edge = [], 0
    for event in events:
        if isinstance(event, Final):
            end = event.end if split[event.utterance] else min(event.end + TRAIL, len(audio))
            found.append(audio[max(event.start, edge) : end])
            edge = end
    return found


@pytest.mark.parametrize("packed", [False, True])
@settings(deadline=None, max_examples=20)
@given(
    talk | st.integers(0, 2**31).map(lecture),
    sizes,
    delays,
    st.sampled_from([300, 500, 1000]),
    st.sampled_from([0, 320]),
)
def test_a_stream_and_a_recording_hear_the_same(
    packed: bool,
    words: list[int | float],
    sizes: list[int],
    delays: list[int],
    endpointing: int,
    pre_roll: int,
) -> None:
    audio = speak(words)
    options = replace(WORDS, endpointing_ms=endpointing, pre_roll_ms=pre_roll)
    events = drive(audio, options, sizes=sizes, delays=delays)
    items, windows = read(audio, options=options, capabilities=WHISPER if packed else CAPABILITIES)
    finals = [event for event in events if isinstance(event, Final)]
    expected = pieces(events, audio)
    if not packed:
        assert [len(window.samples) for window in windows] == [len(each) for each in expected]
    nothing = np.zeros(0, np.float32)
    heard = np.concatenate([nothing, *(window.samples for window in windows)])
    assert np.array_equal(heard, np.concatenate([nothing, *expected]))
    segments = [item for item in items if isinstance(item, Segment)]
    assert "".join(each.text for each in segments) == "".join(final.text for final in finals)
    assert [word for each in segments for word in each.words] == [
        word for final in finals for word in final.words
    ]
    (summary,) = [item for item in items if isinstance(item, Summary)]
    assert summary.samples == len(audio)
    assert summary.speech == sum(final.end - final.start for final in finals)
