"""The promises of a stream hold for any speech, message size, delay and change of mind."""

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.agreement import Agreement
from streaming.backends.base import Hypothesis, Window
from streaming.backends.scripted import CAPABILITIES, ScriptedSteps
from streaming.events import (
    Eager,
    Event,
    Failed,
    Final,
    Marker,
    Partial,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
)
from streaming.scheduler import Job, Lane
from streaming.segmenter import FRAME
from streaming.session import Session
from streaming.types import RATE, Options, WindowMode, Word
from tests.drive import (
    WHISPER,
    Decode,
    delays,
    drive,
    fickle,
    honest,
    loudness,
    sizes,
    speak,
    talk,
)

WORDS = Options(words=True, pre_roll_ms=0)


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def said(events: list[Event]) -> str:
    return "".join(final.text for final in finals(events))


def test_what_is_said_appears_while_it_is_said_and_then_for_good() -> None:
    events = drive(speak([0.5, 1, 2, 3, 4, 5, 6, 7, 8, 1.0]), WORDS, delays=(3,))
    assert isinstance(events[0], SpeechStarted)
    partials = [event for event in events if isinstance(event, Partial)]
    assert partials[0].tentative == " w1"
    assert any(partial.committed for partial in partials)
    assert said(events) == " w1 w2 w3 w4 w5 w6 w7 w8"


def test_the_final_is_there_when_the_speech_has_stopped() -> None:
    """The decode ran during the silence that ends an utterance: nothing is left to do at the endpoint."""
    events = drive(speak([0.5, 1, 2, 3, 1.0]), WORDS, delays=(5,))
    stopped = next(at for at, event in enumerate(events) if isinstance(event, SpeechStopped))
    final = events[stopped + 1]
    assert isinstance(final, Final)
    assert final.timing.speculated


def test_an_eager_final_is_the_final_word_for_word_or_taken_back() -> None:
    audio = speak([0.3, 1, 2, 0.3, 3, 4, 0.3, 5, 1.0, 6, 1.0])
    events = drive(audio, Options(eager=True, pre_roll_ms=0), delays=(2,), decode=fickle(1))
    eager: dict[int, str] = {}
    for event in events:
        match event:
            case Eager(utterance, text):
                eager[utterance] = text
            case SpeechResumed(utterance):
                del eager[utterance]
            case Final(utterance, text):
                assert eager.get(utterance, text) == text
    assert eager
    assert any(isinstance(event, SpeechResumed) for event in events)


@pytest.mark.parametrize("seed", range(5))
def test_a_long_monologue_keeps_every_word(seed: int) -> None:
    words = [(seed * 7 + n * 11) % 60 for n in range(240)]
    events = drive(speak([0.5, *words, 1.0]), WORDS, delays=(1, 9))
    assert said(events).split() == [f"w{word}" for word in words]
    assert len(finals(events)) > 1


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**31), st.integers(50, 100), delays, st.booleans())
def test_a_split_before_committed_words_neither_loses_nor_doubles_them(
    seed: int, before: int, delays: list[int], stepwise: bool
) -> None:
    """The only breath lies up to 14 s before the split: by then the words after it are committed, and out of the window."""
    chance = random.Random(seed)
    words: list[int | float] = [chance.randrange(1, 30) + 30 * (n % 2) for n in range(130)]
    audio = speak([0.5, *words[:before], 0.12, *words[before:], 1.0])
    stepper = ScriptedSteps() if stepwise else None
    events = drive(audio, WORDS, delays=delays, stepper=stepper)
    assert said(events).split() == [f"w{word}" for word in words]
    first, second = finals(events)
    assert first.end == second.start
    # Which of the two finals has the words around the split depends on the load; but only what was committed before the
    # split lies on its other side, and each final is the words of its own times, in order.
    before_split = events[: next(n for n, e in enumerate(events) if isinstance(e, SpeechStopped))]
    committed = [e.committed for e in before_split if isinstance(e, Partial)]
    beyond = [word for word in first.words if word.start >= first.end]
    assert not beyond or committed[-1].endswith("".join(word.text for word in beyond))
    edge = first.words[-1].end
    assert all(word.start >= edge for word in second.words)
    assert abs(first.end / RATE - (0.5 + before * 0.25 + 0.06)) < 0.12
    assert stepper is None or stepper.open_states == 0


def test_what_a_window_was_cut_off_is_settled() -> None:
    """In a pause the cut lies behind the last committed word: a split there must not ask for what is forgotten."""
    agreement = Agreement(0, CAPABILITIES)
    words = [
        Word(" a", 0, RATE, 0.9),
        Word(" b.", RATE, 2 * RATE, 0.9),
        Word(" c", 4 * RATE, 5 * RATE, 0.9),
    ]
    for _ in range(2):
        agreement.receive_hypothesis(words, 5 * RATE + RATE // 5)
    agreement.cut(11 * RATE)
    assert [word.text for word in agreement.committed] == [" a", " b."]
    assert agreement.trim == agreement.settled == 3 * RATE


def test_a_window_is_cut_at_a_pause_where_there_is_one_and_else_in_a_phrase() -> None:
    def trim(gap: float) -> float:
        """In seconds, after 10.2 s of words of half a second; `gap` follows the fourth."""
        agreement, at, words = Agreement(0, CAPABILITIES), 0.0, []
        for number in range(17):
            words.append(Word(f" w{number}", round(at * RATE), round((at + 0.5) * RATE), 0.9))
            at += 0.5 + (gap if number == 3 else 0.0)
        for _ in range(2):
            agreement.receive_hypothesis(words, 10 * RATE)
        agreement.cut(round(10.2 * RATE))
        return agreement.trim / RATE

    assert trim(0.3) == 2.15
    assert trim(0.1) == 4.1  # 6 s before the edge at least


def _heard(*texts: str, step: int = RATE // 4, **more: Any) -> Hypothesis:
    """What a recogniser says, a word each quarter of a second."""
    words = tuple(
        Word(text, at * step, at * step + step - 400, 0.9) for at, text in enumerate(texts)
    )
    found = {"language": "en", "log_probability": -0.1, "no_speech": 0.0} | more
    return Hypothesis("".join(texts), words, **found)


class _Stage:
    """A session, fed frame by frame; its jobs come back when the test says so."""

    def __init__(self, options: Options, full: int = 0) -> None:
        self.session = Session(options, replace(CAPABILITIES, full=full), lambda _: 0)

    def hear(self, frames: int, probability: float) -> list[Job]:
        """Jobs that these frames ask for; they are taken at once."""
        level = 0.1 if probability > 0.1 else 0.0
        self.session.receive_audio(np.full(frames * FRAME, level, np.float32))
        heard = self.session.frames()
        self.session.receive_probabilities(
            heard, np.full(len(heard) // FRAME, probability, np.float32)
        )
        return self.jobs()

    def jobs(self) -> list[Job]:
        jobs = self.session.jobs()
        for job in jobs:
            job.started = 0.0
        return jobs

    def answer(self, job: Job, result: Hypothesis) -> None:
        job.result = result
        self.session.receive_result(job)


def test_a_partial_that_comes_after_the_guess_it_ran_beside_commits_nothing() -> None:
    stage = _Stage(Options(pre_roll_ms=0))
    (first,) = stage.hear(60, 0.9)
    stage.answer(first, _heard(" the", " dog"))
    (partial,) = stage.hear(12, 0.9)
    (guess,) = stage.hear(3, 0.01)
    assert guess.lane is Lane.SPECULATIVE
    stage.answer(guess, _heard(" the", " cat,", " sat", " down."))
    stage.answer(partial, _heard(" the", " cat", " sat"))
    stage.hear(20, 0.01)
    events = stage.session.events()
    committed = [event.committed for event in events if isinstance(event, Partial)]
    assert said(events) == " the cat, sat down."
    assert all(said(events).startswith(each) for each in committed)


def test_an_older_partial_takes_nothing_back_that_a_newer_one_showed() -> None:
    stage = _Stage(Options(pre_roll_ms=0))
    (first,) = stage.hear(60, 0.9)
    (guess,) = stage.hear(3, 0.01)
    stage.hear(1, 0.9)  # it was no pause: what was a guess is a partial now
    stage.answer(guess, _heard(" the", " cat", " sat", " down"))
    shown = stage.session.events()[-1]
    stage.answer(first, _heard(" a", " hat"))
    assert isinstance(shown, Partial)
    assert stage.session.events() == []


@pytest.mark.parametrize(
    ("detections", "locked"),
    [
        ([("en", 0.9), ("en", 0.9)], "en"),
        ([("en", 0.9), ("fr", 0.9), ("en", 0.9)], None),
        ([("en", 0.9), ("en", 0.5), ("en", 0.9)], None),
        ([("fr", 0.9), ("en", 0.9), ("en", 0.9)], "en"),
        ([("en", 0.9)], None),
    ],
)
def test_two_utterances_in_a_row_in_one_language_lock_it(
    detections: list[tuple[str, float]], locked: str | None
) -> None:
    stage = _Stage(Options(pre_roll_ms=0))
    for language, probability in detections:
        for job in stage.hear(60, 0.9) + stage.hear(3, 0.01):
            assert job.window.decoding.language is None
            stage.answer(
                job, _heard(" a", " b", language=language, language_probability=probability)
            )
        stage.hear(20, 0.01)
    (job,) = stage.hear(60, 0.9)
    assert job.window.decoding.language == locked


def test_a_doubtful_guess_whose_second_try_waits_at_the_endpoint_is_not_decoded_a_third_time() -> (
    None
):
    stage = _Stage(Options(pre_roll_ms=0, partials=False), full=30 * RATE)
    (guess,) = stage.hear(60, 0.9) + stage.hear(3, 0.01)
    stage.answer(guess, _heard(" so", log_probability=-1.5))
    (again,) = stage.jobs()
    again.started = None  # it waits
    (final,) = stage.hear(20, 0.01)
    assert again.window.decoding.floor == final.window.decoding.floor == 30 * RATE
    assert final.lane is Lane.FINAL
    stage.answer(final, _heard(" low", log_probability=-1.2))
    assert stage.jobs() == []
    assert said(stage.session.events()) == " low"


@pytest.mark.parametrize("partials", [False, True])
def test_a_text_longer_than_the_recogniser_can_print_is_asked_for_in_parts(partials: bool) -> None:
    def terse(window: Window) -> Hypothesis:
        found = honest(replace_align(window))
        if len(found.words) <= 12:
            return found if window.decoding.align else replace(found, words=())
        words = found.words[:12] if window.decoding.align else ()
        text = "".join(word.text for word in found.words[:12])
        return replace(found, text=text, words=words, capped=True)

    def replace_align(window: Window) -> Window:
        return replace(window, decoding=replace(window.decoding, align=True))

    words = [n * 7 % 60 for n in range(80)]
    audio = speak([0.5, *words, 1.0])
    events = drive(audio, Options(pre_roll_ms=0, partials=partials), decode=terse)
    assert said(events).split() == [f"w{word}" for word in words]
    assert len(finals(events)) == 1


def test_a_loop_is_said_once() -> None:
    def looping(window: Window) -> Hypothesis:
        found = honest(window)
        if not found.words:
            return found
        last = found.words[-1]
        loop = [replace(last, text=text) for text in (" thank", " you") * 40]
        return replace(
            found,
            text=found.text + "".join(word.text for word in loop),
            words=(*found.words, *loop),
            compression_ratio=9.0,
            capped=True,
        )

    events = drive(speak([0.5, 1, 2, 3, 1.0]), WORDS, decode=looping)
    assert said(events) == " w1 w2 w3 thank you"
    shown = [e.committed + e.tentative for e in events if isinstance(e, Partial)]
    assert max(text.count("thank") for text in shown) <= 1


def test_noise_that_neither_detector_nor_recogniser_holds_for_speech_says_nothing() -> None:
    def text(probability: float, no_speech: float) -> str:
        stage = _Stage(Options(pre_roll_ms=0))
        for job in stage.hear(30, probability) + stage.hear(3, 0.01):
            stage.answer(job, _heard(" Thank", " you.", no_speech=no_speech))
        stage.hear(20, 0.01)
        events = stage.session.events()
        assert not any(isinstance(e, Partial) for e in events) or said(events)
        return said(events)

    assert text(0.55, 0.5) == ""
    assert text(0.55, 0.1) == " Thank you."
    assert text(0.9, 0.5) == " Thank you."


def test_a_marker_follows_the_finals_of_all_that_came_before() -> None:
    audio = speak([0.5, 1, 2, 3, 4, 0.2])
    events = drive(audio, WORDS, delays=(30,), commits=[RATE])
    at = next(n for n, event in enumerate(events) if isinstance(event, Marker))
    assert isinstance(events[at - 1], Final)
    assert said(events[:at]).split()[0] == "w1"
    assert events[at] == Marker(f"m{RATE}", RATE)


def failing(*numbers: int) -> Decode:
    """A recogniser that fails at these decodes, counted from 0."""
    calls = itertools.count()

    def decode(window: Window) -> Hypothesis:
        if next(calls) in numbers:
            return RuntimeError("broken")  # type: ignore[return-value]
        return honest(window)

    return decode


def test_a_guess_at_the_final_that_fails_costs_no_word() -> None:
    """It fails within the pause, and the final is decoded at the endpoint."""
    options = Options(partials=False, pre_roll_ms=0)
    events = drive(speak([0.5, 1, 2, 1.0, 3, 4, 1.0]), options, decode=failing(0))
    assert said(events).split() == ["w1", "w2", "w3", "w4"]
    assert not any(isinstance(event, Failed) for event in events)
    assert [final.timing.speculated for final in finals(events)] == [False, True]


@pytest.mark.parametrize("wanted", ["at the endpoint", "at a commit", "before the endpoint"])
def test_a_final_that_fails_loses_its_utterance_and_no_other(wanted: str) -> None:
    audio = speak([0.5, 1, 2, 1.0, 3, 4, 1.0])
    options = Options(partials=False, pre_roll_ms=0)
    if wanted == "at the endpoint":
        events = drive(audio, options, decode=failing(0, 1))
    elif wanted == "at a commit":
        events = drive(audio, options, decode=failing(0), commits=[RATE])
    else:  # it is still at work when the utterance ends, and is not asked again
        events = drive(audio, options, decode=failing(0), delays=(40,))
    assert said(events).split() == ["w3", "w4"]
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.utterance == 0
    assert str(failed.error) == "broken"
    ended = [event.utterance for event in events if isinstance(event, Failed | Final)]
    assert ended == [0, 1]


@pytest.mark.parametrize(
    ("mode", "temperature", "floor"),
    [("auto", 0.0, 30 * RATE), ("short", 0.2, 5 * RATE), ("full", 0.2, 30 * RATE)],
)
def test_a_doubtful_final_is_decoded_once_more(
    mode: WindowMode, temperature: float, floor: int
) -> None:
    """In a full window where it was a shorter one, else warmer."""
    options = Options(window=mode, partials=False, pre_roll_ms=0)
    session = Session(options, WHISPER, lambda window: 0)
    session.receive_audio(speak([0.5, 1, 2, 1.0]))
    frames = session.frames()
    session.receive_probabilities(frames, loudness(frames))
    asked = []
    while jobs := [job for job in session.jobs() if job.lane is Lane.FINAL]:
        (job,) = jobs
        assert isinstance(job.window, Window)
        asked.append((job.window.decoding.temperature, job.window.decoding.floor))
        job.result = replace(honest(job.window), log_probability=-2.0)
        session.receive_result(job)
    assert asked[0][0] == 0.0
    assert asked[1:] == [(temperature, floor)]
    assert said(session.events()) == " w1 w2"


def test_silence_gives_no_event_at_all() -> None:
    assert drive(np.zeros(60 * RATE, np.float32), WORDS, sizes=(8000,)) == []


options = st.builds(
    Options,
    words=st.booleans(),
    partials=st.booleans(),
    eager=st.booleans(),
    endpointing=st.sampled_from(["silence", "client"]),
    endpointing_ms=st.sampled_from([100, 200, 500, 1000]),
    pre_roll_ms=st.sampled_from([0, 320]),
    vad_threshold=st.sampled_from([0.1, 0.5, 0.9]),
    window=st.sampled_from(["auto", "short", "full"]),
)


@settings(deadline=None, max_examples=120)
@given(
    talk,
    options,
    sizes,
    delays,
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**31),
    st.lists(st.integers(1, 5 * RATE), max_size=3),
)
def test_committed_never_shrinks_and_finals_come_once_and_in_order(
    words: list[int | float],
    options: Options,
    sizes: list[int],
    delays: list[int],
    workers: int,
    doubts: bool,
    seed: int,
    commits: list[int],
) -> None:
    events = drive(
        speak(words),
        options,
        sizes=sizes,
        delays=delays,
        decode=fickle(seed, doubts=doubts),
        commits=commits,
        workers=workers,
        full=30 * RATE,
    )
    committed: dict[int, str] = {}
    done: list[int] = []
    revision: dict[int, int] = {}
    eager: dict[int, str] = {}
    edge = 0
    for event in events:
        match event:
            case Partial():
                assert event.utterance not in done
                assert event.committed.startswith(committed.get(event.utterance, ""))
                committed[event.utterance] = event.committed
                assert event.revision == revision.get(event.utterance, 0) + 1
                revision[event.utterance] = event.revision
            case Final():
                assert event.text.startswith(committed.get(event.utterance, ""))
                assert event.start >= edge
                edge = event.end
                assert event.utterance not in eager or event.text == eager[event.utterance]
                done.append(event.utterance)
            case Failed():
                done.append(event.utterance)
            case Eager():
                eager[event.utterance] = event.text
            case SpeechResumed():
                eager.pop(event.utterance, None)
            case _:
                pass
    started = [event.utterance for event in events if isinstance(event, SpeechStarted)]
    assert started == done == list(range(len(started)))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.integers(50, 100), delays)
def test_a_split_takes_no_committed_word_back(seed: int, before: int, delays: list[int]) -> None:
    words: list[int | float] = [n * 7 % 60 for n in range(130)]
    audio = speak([0.5, *words[:before], 0.12, *words[before:], 1.0])
    committed: dict[int, str] = {}
    edge = 0
    for event in drive(audio, WORDS, delays=delays, decode=fickle(seed)):
        match event:
            case Partial(utterance, _, text):
                assert text.startswith(committed.get(utterance, ""))
                committed[utterance] = text
            case Final():
                assert event.text.startswith(committed.get(event.utterance, ""))
                assert all(edge <= word.start for word in event.words)
                edge = max((word.end for word in event.words), default=edge)
            case _:
                pass


@settings(deadline=None, max_examples=40)
@given(
    talk, options, sizes, delays, st.integers(1, 3), st.lists(st.integers(1, 5 * RATE), max_size=3)
)
def test_message_size_and_load_change_neither_boundaries_nor_text(
    words: list[int | float],
    options: Options,
    sizes: list[int],
    delays: list[int],
    workers: int,
    commits: list[int],
) -> None:
    audio = speak(words)
    reference = finals(drive(audio, options, sizes=(10**9,), delays=(0,), commits=commits))
    finals_now = finals(
        drive(audio, options, sizes=sizes, delays=delays, commits=commits, workers=workers)
    )
    assert [(f.start, f.end, f.text) for f in finals_now] == [
        (f.start, f.end, f.text) for f in reference
    ]
    if not commits:
        heard = "".join(f.text for f in finals_now).split()
        spoken = [f"w{word}" for word in words if isinstance(word, int)]
        collapsed = [w for n, w in enumerate(spoken) if n == 0 or w != spoken[n - 1]]
        assert [w for n, w in enumerate(heard) if n == 0 or w != heard[n - 1]] == collapsed
