"""The estimate that tells growth from noise."""

import random

import pytest

from tests.perf.soak import slope


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
