"""The measure of loss: what counts as lost, doubled and changed."""

import pytest

from tests.words import Difference, difference

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
        ("", Difference(lost=6, changed=1)),
    ],
)
def test_words_are_lost_doubled_or_changed(found: str, expected: Difference) -> None:
    assert difference(SPOKEN, found) == expected


def test_differences_add_up() -> None:
    assert Difference(1, 2, 3) + Difference(1) == Difference(2, 2, 3)
