"""The promises of a stream hold for any speech, message size, delay and change of mind."""

import random

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
from streaming.types import RATE, Options, Word
from tests.drive import delays, drive, fickle, honest, sizes, speak, talk

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


def test_a_marker_follows_the_finals_of_all_that_came_before() -> None:
    audio = speak([0.5, 1, 2, 3, 4, 0.2])
    events = drive(audio, WORDS, delays=(30,), commits=[RATE])
    at = next(n for n, event in enumerate(events) if isinstance(event, Marker))
    assert isinstance(events[at - 1], Final)
    assert said(events[:at]).split()[0] == "w1"
    assert events[at] == Marker(f"m{RATE}", RATE)


def test_a_recogniser_that_fails_loses_its_utterance_and_no_other() -> None:
    calls = 0

    def failing(window: Window) -> Hypothesis:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise_in_job = RuntimeError("broken")
            return raise_in_job  # type: ignore[return-value]
        return honest(window)

    options = Options(partials=False, pre_roll_ms=0)
    events = drive(speak([0.5, 1, 2, 1.0, 3, 4, 1.0]), options, decode=failing)
    assert said(events).split() in (["w1", "w2", "w3", "w4"], ["w3", "w4"])


def test_silence_gives_no_event_at_all() -> None:
    assert drive(np.zeros(60 * RATE, np.float32), WORDS, sizes=(8000,)) == []


@settings(deadline=None, max_examples=60)
@given(talk, sizes, delays, st.integers(0, 2**31), st.lists(st.integers(1, 5 * RATE), max_size=3))
def test_committed_never_shrinks_and_finals_come_once_and_in_order(
    words: list[int | float], sizes: list[int], delays: list[int], seed: int, commits: list[int]
) -> None:
    events = drive(
        speak(words), WORDS, sizes=sizes, delays=delays, decode=fickle(seed), commits=commits
    )
    committed: dict[int, str] = {}
    done: list[int] = []
    revision: dict[int, int] = {}
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
                done.append(event.utterance)
            case Failed():
                done.append(event.utterance)
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
@given(talk, sizes, delays, st.lists(st.integers(1, 5 * RATE), max_size=3))
def test_message_size_and_load_change_neither_boundaries_nor_text(
    words: list[int | float], sizes: list[int], delays: list[int], commits: list[int]
) -> None:
    audio = speak(words)
    reference = finals(drive(audio, WORDS, sizes=(10**9,), delays=(0,), commits=commits))
    finals_now = finals(drive(audio, WORDS, sizes=sizes, delays=delays, commits=commits))
    assert [(f.start, f.end, f.text) for f in finals_now] == [
        (f.start, f.end, f.text) for f in reference
    ]
    if not commits:
        heard = "".join(f.text for f in finals_now).split()
        spoken = [f"w{word}" for word in words if isinstance(word, int)]
        collapsed = [w for n, w in enumerate(spoken) if n == 0 or w != spoken[n - 1]]
        assert [w for n, w in enumerate(heard) if n == 0 or w != heard[n - 1]] == collapsed
