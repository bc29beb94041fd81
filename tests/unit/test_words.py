"""The measure of loss: what counts as lost, doubled and changed."""

import pytest

from tests.words import Difference, difference, stretches

SPOKEN = "The small dog found seven red apples."


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("the small dog found seven red apples", Difference()),
        ("the small dog found red apples", Difference(lost=1)),
        ("the small dog dog found seven red apples", Difference(doubled=1)),
        ("the small dog found the small dog found seven red apples", Difference(doubled=4)),
        ("the small fog found seven red apples", Difference(changed=1)),
        ("the small dog found seven red app els", Difference(changed=2)),
        ("the small red apples", Difference(lost=3)),
        ("the small cat apples", Difference(lost=3, changed=1)),
        ("", Difference(lost=7)),
    ],
)
def test_words_are_lost_doubled_or_changed(found: str, expected: Difference) -> None:
    assert difference(SPOKEN, found) == expected


def test_what_is_heard_better_is_neither_lost_nor_doubled() -> None:
    better, worse = SPOKEN, "the small dog found red apples"
    assert difference(worse, better) == Difference(doubled=1)
    assert difference(worse, better, SPOKEN) == Difference(changed=1)
    assert difference("the small small dog found seven red apples", better, SPOKEN) == Difference(
        changed=1
    )
    assert difference(better, worse, SPOKEN) == Difference(lost=1)
    assert difference(better, "the small dog dog found seven red apples", SPOKEN) == Difference(
        doubled=1
    )
    twice = "the small dog found seven seven red apples"
    assert difference(worse, twice, SPOKEN).doubled == 2, "half of it is no better"


def test_a_loop_in_place_of_words_is_one_change() -> None:
    looped = "the small dog found the small dog found the small dog apples"
    assert difference(SPOKEN, looped).doubled == 5
    assert difference(SPOKEN, looped, SPOKEN) == Difference(changed=7)
    assert len(stretches(SPOKEN, looped)) == 1
    assert difference(looped, SPOKEN, SPOKEN) == Difference(changed=7)


def test_words_that_go_beside_a_misheard_one_are_lost_all_the_same() -> None:
    gone = "the small cat apples"
    assert difference(SPOKEN, gone, SPOKEN) == Difference(lost=3, changed=1)


def test_differences_add_up() -> None:
    assert Difference(1, 2, 3) + Difference(1) == Difference(2, 2, 3)
