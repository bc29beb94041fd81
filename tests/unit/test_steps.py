"""Step recognisers keep the same promises through the same session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.agreement import Agreement
from streaming.backends.base import Capabilities, Decoding, Hypothesis, Step, StepResult, Window
from streaming.backends.scripted import STEPS, ScriptedSteps, spell
from streaming.backends.stepwise import Steps, whole
from streaming.errors import BackendError
from streaming.events import Event, Failed, Final, Partial
from streaming.types import RATE, Options, Samples, Word
from tests.drive import delays, drive, sizes, speak, talk

WORDS = Options(words=True, pre_roll_ms=0)
ANY_LENGTH = replace(STEPS, chunk=0)


@dataclass
class Revising(ScriptedSteps):
    """Promises nothing: every third answer lacks its last word, every fifth call fails where it is told to."""

    capabilities: Capabilities = ANY_LENGTH
    fails: bool = False
    turns: list[int] = field(default_factory=list)

    def step(self, states: Sequence[object], chunks: Sequence[Samples]) -> list[StepResult]:
        self.turns.append(len(states))
        if self.fails and len(self.turns) % 5 == 0:
            raise BackendError("the recogniser stumbled")
        found = []
        for state, chunk in zip(states, chunks, strict=True):
            state.samples = np.concatenate([state.samples, chunk])  # type: ignore[attr-defined]
            words = whole_words(state.samples)  # type: ignore[attr-defined]
            found.append(StepResult(words[:-1] if len(self.turns) % 3 == 0 else words))
        return found


def whole_words(samples: Samples) -> tuple[Word, ...]:
    from streaming.backends.scripted import read

    return read(samples)


def promises(events: list[Event]) -> list[Final]:
    """Checks them, and answers the finals."""
    committed: dict[int, str] = {}
    done: list[int] = []
    for event in events:
        match event:
            case Partial():
                assert event.utterance not in done
                assert event.committed.startswith(committed.get(event.utterance, ""))
                committed[event.utterance] = event.committed
            case Final():
                assert event.text.startswith(committed.get(event.utterance, ""))
                done.append(event.utterance)
            case Failed():
                raise AssertionError(event.error)
            case _:
                pass
    assert done == sorted(set(done))
    return [event for event in events if isinstance(event, Final)]


@settings(deadline=None, max_examples=40)
@given(talk, sizes, delays, st.lists(st.integers(1, 5 * RATE), max_size=3))
def test_steps_say_what_windows_say(
    words: list[int | float], sizes: list[int], delays: list[int], commits: list[int]
) -> None:
    audio = speak(words)
    stepper = ScriptedSteps()
    stepped = promises(
        drive(audio, WORDS, sizes=sizes, delays=delays, commits=commits, stepper=stepper)
    )
    windowed = promises(drive(audio, WORDS, sizes=(10**9,), delays=(0,), commits=commits))
    assert [(f.start, f.end, f.text) for f in stepped] == [
        (f.start, f.end, f.text) for f in windowed
    ]
    assert stepper.open_states == 0


@settings(deadline=None, max_examples=40)
@given(talk, sizes, delays, st.booleans())
def test_one_that_revises_or_fails_takes_no_committed_word_back(
    words: list[int | float], sizes: list[int], delays: list[int], fails: bool
) -> None:
    audio = speak(words)
    finals = promises(
        drive(audio, WORDS, sizes=sizes, delays=delays, stepper=Revising(fails=fails))
    )
    reference = promises(drive(audio, WORDS, sizes=(10**9,), delays=(0,)))
    assert [f.text for f in finals] == [f.text for f in reference]


@dataclass
class Deaf(ScriptedSteps):
    """Cannot step at all."""

    capabilities: Capabilities = ANY_LENGTH

    def step(self, states: Sequence[object], chunks: Sequence[Samples]) -> list[StepResult]:
        self.calls.append(len(states))
        raise BackendError("the recogniser stumbled")


def test_one_that_always_fails_is_not_asked_without_end() -> None:
    stepper = Deaf()
    events = drive(speak([0.5, *range(40), 1.0]), WORDS, stepper=stepper)
    assert sum(isinstance(event, Failed) for event in events) == 1
    assert len(stepper.calls) < 12
    assert stepper.open_states == 0


def test_what_was_committed_before_it_was_stable_is_not_said_twice() -> None:
    agreement = Agreement(0, STEPS)
    words = [Word(f" w{at}", at * RATE, (at + 1) * RATE - 800, 0.9) for at in range(4)]
    agreement.receive_step(words[:2], 0, 4 * RATE)
    agreement.receive_step(words[:2], 0, 4 * RATE)
    assert agreement.committed == tuple(words[:2])
    halves = [Word(" w", 0, 8000, 0.9), Word(" 0", 8000, 15_000, 0.9)]
    agreement.receive_step([*halves, *words[1:]], 4, 4 * RATE)
    assert agreement.committed == tuple(words[:3])
    assert agreement.tentative == (words[3],)


def test_words_appear_while_they_are_said_and_stay() -> None:
    events = drive(speak([0.5, *range(12), 1.0]), WORDS, delays=(2,), stepper=ScriptedSteps())
    partials = [event for event in events if isinstance(event, Partial)]
    assert len(partials) > 4
    assert partials[-1].committed.startswith(" w0 w1 w2 w3 w4 w5")


def test_an_utterance_split_before_what_was_heard_is_heard_again() -> None:
    words = [(n * 11) % 60 for n in range(140)]  # 35 s without a pause
    finals = promises(drive(speak([0.3, *words, 1.0]), WORDS, stepper=ScriptedSteps()))
    assert len(finals) == 2
    assert "".join(final.text for final in finals).split() == [f"w{word}" for word in words]


def test_streams_of_any_age_share_a_call() -> None:
    stepper = ScriptedSteps()
    steps = Steps(stepper)
    chunk = STEPS.chunk
    old = spell(3, chunk / RATE)
    steps.run([("old", 0, Step(old, first=True))])
    mixed = [
        ("old", 0, Step(np.zeros(chunk, np.float32))),
        ("new", 0, Step(spell(5, chunk / RATE), first=True)),
        ("late", 0, Step(np.tile(spell(7, chunk / RATE), 3), first=True)),
    ]
    found = steps.run(mixed)
    assert stepper.calls == [1, 3, 1, 1], "whoever has more to hear goes on alone"
    texts = ["".join(w.text for w in r.words) for r in found if isinstance(r, StepResult)]
    assert texts == [" w3", " w5", " w7"]
    last = steps.run([("new", 0, Step(np.zeros(100, np.float32), last=True))])[0]
    assert isinstance(last, Hypothesis)
    assert last.text == " w5"
    assert stepper.open_states == 2
    steps.drop("old")
    steps.drop("late")
    assert stepper.open_states == 0


@pytest.mark.parametrize("lengths", [(0.5,), (0.5, 3.1, 1.0)])
def test_recordings_need_nothing_else(lengths: tuple[float, ...]) -> None:
    windows = [
        Window(
            np.concatenate([spell(at, length / 2), np.zeros(round(length * RATE / 2))]), Decoding()
        )
        for at, length in enumerate(lengths)
    ]
    found = whole(ScriptedSteps()).decode(windows)
    assert [each.text for each in found] == [f" w{at}" for at in range(len(lengths))]
