"""All streams together may be behind by so much; those that are behind most give way."""

from streaming.backlog import MOST, Backlog


def test_beyond_the_bound_those_give_way_that_are_behind_most() -> None:
    backlog = Backlog(1000)
    for owner in range(9):
        backlog.put(owner, 10)
    backlog.put("late", 900)
    assert not backlog.full
    assert not backlog.excess("late")
    backlog.put("late", 950)
    assert backlog.full
    assert backlog.excess("late")
    assert not any(backlog.excess(owner) for owner in range(9))
    backlog.forget("late")
    assert not backlog.full
    assert not backlog.excess(0)


def test_one_stream_has_a_bound_of_its_own() -> None:
    backlog = Backlog(10 * MOST)
    backlog.put("a", MOST - 1)
    assert not backlog.excess("a")
    backlog.put("a", MOST)
    assert backlog.excess("a")
    assert not backlog.excess("b")
