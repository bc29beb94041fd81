"""The soak's judgement: the estimate that tells growth from noise, and words."""

import random

import pytest

from tests.perf.soak import Slope, Soak, grows, slope


def test_growth_is_found_in_noise_and_outliers() -> None:
    chance = random.Random(1)
    points = [(10.0 * at, 200 + 10 * at / 360 + chance.gauss(0, 0.2)) for at in range(180)]
    points[50] = (500.0, 900.0)
    found = slope(points)
    assert found.middle == pytest.approx(10, abs=0.7)
    assert 0 < found.low < 10 < found.high


def test_noise_alone_is_no_growth() -> None:
    chance = random.Random(3)
    found = slope([(10.0 * at, 200 + chance.gauss(0, 3)) for at in range(180)])
    assert found.low < 0 < found.high


def test_what_does_not_change_has_no_slope() -> None:
    found = slope([(10.0 * at, 14.0) for at in range(20)])
    assert (found.low, found.middle, found.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Slope(1.0, 0.5, 1.5), False),
        (Slope(3.0, 2.5, 3.5), True),
        (Slope(4.0, -1.0, 9.0), False),
        (Slope(6.0, -1.0, 13.0), True),
    ],
    ids=["little", "2 % for certain", "noise", "5 % in the middle"],
)
def test_memory_grows(found: Slope, expected: bool) -> None:
    assert grows(found, 100.0) is expected


def test_words_of_sessions_are_counted_and_too_many_wrong_ones_are_a_fault() -> None:
    soak, said = Soak(), "the small dog found seven red apples beside the house"
    soak.hear("a", said, said.replace("small", "tall"))
    assert (soak.words, soak.misheard, soak.faults) == (10, 1, [])
    soak.hear("b", said, said.replace("small dog found seven red", "fog"))
    assert soak.faults == ["b: 5 of 10 words misheard"]
    soak.hear("c", said, "")
    assert soak.faults[1:] == ["c: 10 of 10 words misheard"]
