"""Utterance boundaries follow from the frames alone, and lose none."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.listener import Cut, Listener
from streaming.segmenter import (
    FRAME,
    SPLIT_AT,
    Boundary,
    Paused,
    Resumed,
    Segmenter,
    Started,
    Stopped,
)
from streaming.types import RATE, Options

DEFAULT = Options()


def boundaries(pattern: str, options: Options = DEFAULT, *, end: bool = True) -> list[Boundary]:
    """The boundaries of frames drawn as text: S speech, m in between, . silence."""
    segmenter, found = Segmenter(options), []
    probability = {"S": 0.9, "m": 0.42, ".": 0.05}
    for number, frame in enumerate(pattern, 1):
        found += segmenter.receive_frame(number * FRAME, probability[frame], 0.1)
    return found + (segmenter.receive_end(len(pattern) * FRAME) if end else [])


def stops(found: list[Boundary | Cut]) -> list[tuple[int, int]]:
    return [(each.start, each.end) for each in found if isinstance(each, Stopped)]


def test_three_frames_of_speech_open_an_utterance_with_its_pre_roll() -> None:
    found = boundaries("." * 20 + "SSS", end=False)
    assert found == [Started(20 * FRAME - 320 * 16)]


def test_two_frames_do_not() -> None:
    assert boundaries("....SS....SS.....", end=False) == []


def test_half_a_second_of_silence_closes_it_and_only_64_ms_of_that_are_kept() -> None:
    found = boundaries("." * 20 + "S" * 30 + "." * 16, end=False)
    assert found[1:] == [
        Paused(20 * FRAME - 5120, 52 * FRAME),
        Stopped(20 * FRAME - 5120, 52 * FRAME, 50 * FRAME),
    ]


def test_a_shorter_silence_is_a_pause_that_ends() -> None:
    found = boundaries("." * 20 + "S" * 30 + "." * 15 + "S" * 5, end=False)
    assert [type(each) for each in found] == [Started, Paused, Resumed]


def test_between_the_thresholds_speech_goes_on_and_silence_too() -> None:
    assert stops(boundaries("SSSmmmmmmmmmmmmmmmmmmmmmmm", end=False)) == []
    assert stops(boundaries("SSS.mmmmmmmmmmmmmmmmmmm", end=False)) == [(0, 5 * FRAME)]


@pytest.mark.parametrize(("milliseconds", "frames"), [(200, 6), (500, 16), (800, 25), (10, 1)])
def test_the_endpoint_is_rounded_to_the_nearest_frame(milliseconds: int, frames: int) -> None:
    options = Options(endpointing_ms=milliseconds)
    assert not stops(boundaries("SSSS" + "." * (frames - 1), options, end=False))
    assert stops(boundaries("SSSS" + "." * frames, options, end=False))


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.15, 0.2])
def test_with_a_low_threshold_utterances_end_too(threshold: float) -> None:
    segmenter, found = Segmenter(Options(vad_threshold=threshold)), list[Boundary]()
    for number in range(1, 60):
        probability = threshold if number < 20 else threshold / 5
        found += segmenter.receive_frame(number * FRAME, probability, 0.0)
    assert [type(each) for each in found] == [Started, Paused, Stopped]


def test_what_is_open_at_the_end_is_closed_there() -> None:
    assert stops(boundaries("." * 20 + "S" * 30)) == [(20 * FRAME - 5120, 50 * FRAME)]


def test_a_word_cut_off_by_the_end_is_not_lost() -> None:
    assert stops(boundaries("." * 20 + "SS")) == [(20 * FRAME - 5120, 22 * FRAME)]


def test_a_long_speech_is_split_at_its_deepest_silence_without_a_gap() -> None:
    # 40 s without an endpoint; at 20 s somebody breathes for 160 ms.
    found = stops(boundaries("S" * 620 + "....." + "S" * 640))
    assert len(found) == 2
    assert found[0][1] == found[1][0]
    assert 620 * FRAME <= found[0][1] <= 625 * FRAME


def test_where_the_detector_hears_no_silence_the_level_tells_where_to_split() -> None:
    audio = np.tile(np.array([0.3, -0.3], np.float32), 900 * FRAME // 2)
    audio[700 * FRAME : 705 * FRAME] /= 10
    audio[300 * FRAME : 305 * FRAME] = 0  # too early to count
    listener = Listener(Options())
    listener.receive_audio(audio)
    first = stops(judge(listener, np.full(900, 0.9, np.float32)))[0]
    assert first == (0, 702 * FRAME + FRAME // 2)


def test_client_endpointing_keeps_silence_inside_until_the_commit() -> None:
    segmenter, found = Segmenter(Options(endpointing="client")), []
    for number in range(1, 400):
        probability = 0.9 if number < 10 or number > 390 else 0.0
        found += segmenter.receive_frame(number * FRAME, probability, 0.1)
    assert not stops(found)
    assert stops(segmenter.receive_commit(399 * FRAME)) == [(0, 399 * FRAME)]


def test_speech_goes_on_in_a_new_utterance_right_after_a_commit() -> None:
    segmenter = Segmenter(Options())
    for number in range(1, 11):
        segmenter.receive_frame(number * FRAME, 0.9, 0.1)
    assert stops(segmenter.receive_commit(10 * FRAME)) == [(0, 10 * FRAME)]
    assert segmenter.receive_frame(11 * FRAME, 0.4, 0.1) == [Started(10 * FRAME)]


def test_a_commit_without_speech_does_nothing() -> None:
    assert Segmenter(Options()).receive_commit(0) == []


speech = st.lists(
    st.tuples(st.sampled_from([0.9, 0.42, 0.05]), st.integers(1, 60)), min_size=1, max_size=25
)
cuts = st.lists(st.integers(1, 200 * FRAME), max_size=4, unique=True)


LOUDNESS = np.random.default_rng(0).uniform(-1, 1, 61 * FRAME).astype(np.float32) * np.repeat(
    np.random.default_rng(1).uniform(0, 1, 61).astype(np.float32), FRAME
)
"""Audio of another level in each frame."""


def listen(
    probabilities: list[float], commits: list[int], sizes: list[int], tail: int
) -> list[Boundary | Cut]:
    """Boundaries of audio that arrives in messages of `sizes`, with commits after given samples."""
    total = len(probabilities) * FRAME + tail
    by_frame = np.array([*probabilities, 0.0], np.float32)
    audio = np.resize(LOUDNESS, total)
    listener, found, at, turn = Listener(Options()), [], 0, 0
    pending = sorted({min(commit, total) for commit in commits})
    while at < total:
        until = min([at + sizes[turn % len(sizes)], total, *(c for c in pending if c > at)])
        listener.receive_audio(audio[at:until])
        at, turn = until, turn + 1
        if pending and pending[0] == at:
            pending.pop(0)
            listener.receive_commit("m")
            found += listener.settle()
        if turn % 3:  # the detector may lag
            found += judge(listener, by_frame)
    listener.receive_end()
    found += listener.settle()
    return found + judge(listener, by_frame)


def judge(listener: Listener, by_frame: np.ndarray) -> list[Boundary | Cut]:
    first = listener.heard // FRAME
    frames = listener.frames()
    count = len(frames) // FRAME
    return listener.receive_probabilities(frames, by_frame[first : first + count])


@settings(deadline=None)
@given(
    speech, cuts, st.lists(st.integers(1, 9000), min_size=1, max_size=6), st.integers(0, FRAME - 1)
)
def test_message_sizes_and_lag_never_change_a_boundary(
    runs: list[tuple[float, int]], commits: list[int], sizes: list[int], tail: int
) -> None:
    probabilities = [probability for probability, count in runs for _ in range(count)]
    at_once = listen(probabilities, commits, [10**9], tail)
    assert listen(probabilities, commits, sizes, tail) == at_once


@settings(deadline=None)
@given(speech, cuts, st.integers(0, FRAME - 1))
def test_utterances_are_ordered_bounded_and_hold_all_speech(
    runs: list[tuple[float, int]], commits: list[int], tail: int
) -> None:
    probabilities = [probability for probability, count in runs for _ in range(count)]
    found = listen(probabilities, commits, [4000], tail)
    spans = stops(found)
    starts = [each.at for each in found if isinstance(each, Started)]
    assert [start for start, _ in spans] == starts, "every utterance that starts stops"
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end <= start
    for start, end in spans:
        assert start < end <= start + SPLIT_AT
    covered = np.zeros(len(probabilities) * FRAME + tail, bool)
    for start, end in spans:
        covered[start:end] = True
    run = 0
    for number, probability in enumerate([*probabilities, 0.0]):
        if probability >= 0.5:
            run += 1
            continue
        if run >= 3 and not any((number - run) * FRAME < c < number * FRAME for c in commits):
            assert covered[(number - run) * FRAME : number * FRAME].all()
        run = 0


@given(st.integers(1, 30))
def test_memory_is_bounded_while_nobody_speaks(seconds: int) -> None:
    listener = Listener(Options())
    for _ in range(seconds):
        listener.receive_audio(np.zeros(RATE, np.float32))
        frames = listener.frames()
        listener.receive_probabilities(frames, np.zeros(len(frames) // FRAME, np.float32))
        listener.forget()
    assert listener.timeline.end - listener.timeline.start < RATE
