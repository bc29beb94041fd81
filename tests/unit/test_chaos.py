"""The judgement of the chaos run: what it lets pass, and what it does not."""

import numpy as np
import pytest

from streaming.types import Samples
from tests.perf.chaos import Outcome, Plan, Report, Speech, changes, compared

NOTHING: Samples = np.zeros(0, np.float32)
SAID = "the small dog found seven red apples beside the old house " * 10


def judged(disturbed: str, again: str = SAID, first: str = SAID, *faults: str) -> list[str]:
    """The faults of a run of one stream which heard `disturbed`, after two undisturbed ones."""

    def report(heard: str, *faults: str) -> Report:
        return Report(Plan(), outcomes=[Outcome("stream 0", heard=[heard], faults=[*faults])])

    runs = report(disturbed), [Speech(NOTHING, SAID)], report(first, *faults), report(again)
    return compared(*runs).faults


def with_changed(count: int) -> str:
    return SAID.replace("seven", "eleven", count)


def test_the_same_words_are_no_fault() -> None:
    assert judged(SAID) == []


@pytest.mark.parametrize("wrong", [3, 10])
def test_words_replaced_by_as_many_others_are_a_fault_beyond_what_chance_explains(
    wrong: int,
) -> None:
    faults = judged(with_changed(wrong))
    assert faults == (
        []
        if wrong == 3
        else ["streams: words changed at 10 places of 110 words; undisturbed at 0 of 110"]
    )


def test_what_undisturbed_runs_differ_by_may_differ() -> None:
    assert judged(with_changed(10), again=SAID.replace("small", "all", 6)) == []


def test_a_lost_word_is_a_fault_even_if_undisturbed_runs_lose_some() -> None:
    lost = SAID.replace("seven ", "", 1)
    assert judged(lost, again=lost) == [
        "1 words lost, 0 doubled",
        "stream 0 at word 4: seven became -",
    ]


def test_a_word_that_only_the_reference_missed_is_not_doubled() -> None:
    lost = SAID.replace("seven ", "", 1)
    assert judged(SAID, again=lost, first=lost) == []


def test_an_utterance_without_its_final_is_a_fault_whatever_its_words() -> None:
    def report(*ends: float) -> Report:
        return Report(Plan(), outcomes=[Outcome("call 0", heard=[SAID], ends=[*ends])])

    found = compared(report(1, 3, 3), [Speech(NOTHING, SAID)], report(1, 2, 3), report(1, 2, 3))
    assert found.faults == ["call 0: 1 utterances without their final, 1 too many"]


def test_a_fault_of_the_reference_is_a_fault() -> None:
    assert judged(SAID, SAID, SAID, "finals overlap") == ["undisturbed, stream 0: finals overlap"]


def test_a_reference_that_hears_nothing_proves_nothing() -> None:
    assert judged("", "", "") == ["undisturbed, streams: 110 of 110 words misheard"]


def test_the_bound_grows_with_what_is_found_and_with_the_words() -> None:
    def tally(transcripts: int, changed: int) -> Report:
        outcome = Outcome("file 0", heard=[SAID] * transcripts, expected=[SAID] * transcripts)
        outcome.heard[0] = with_changed(changed)
        return Report(Plan(), outcomes=[outcome])

    calm, long = tally(1, 4), tally(3, 0)
    assert changes(calm.tally("file"), long.tally("file")) == 3 * 11
    assert changes(long.tally("file"), calm.tally("file")) == 1
