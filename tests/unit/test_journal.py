"""What waits for a slow reader, and what does not."""

import asyncio
import json

import pytest

from server.journal import BYTES, KEPT_BYTES, KEPT_MESSAGES, MESSAGES, Journal, Unread
from streaming.backlog import Common


def partial(utterance: int, revision: int) -> dict[str, object]:
    return {"type": "partial", "utterance": utterance, "revision": revision, "received": revision}


def final(utterance: int, text: str = "") -> dict[str, object]:
    return {"type": "final", "utterance": utterance, "text": text}


def left(journal: Journal) -> list[dict[str, object]]:
    journal.close()

    async def take() -> list[dict[str, object]]:
        found = []
        while (text := await journal.take()) is not None:
            found.append(json.loads(text))
        return found

    return asyncio.run(take())


def test_a_newer_partial_takes_the_place_of_one_that_has_not_left() -> None:
    journal = Journal()
    for message in (partial(0, 1), final(0), partial(1, 1), {"type": "ack", "received": 5}):
        journal.put(message)
    for revision in range(2, 10):
        journal.put(partial(1, revision))
    found = left(journal)
    assert [each["type"] for each in found] == ["final", "ack", "partial"]
    assert found[-1]["revision"] == 9
    assert [each["seq"] for each in found] == [0, 1, 2]
    assert journal.shed == 9


def test_finals_are_never_shed_and_the_last_word_always_fits() -> None:
    journal = Journal()
    for number in range(MESSAGES):
        journal.put(final(number))
    with pytest.raises(Unread):
        journal.put(final(MESSAGES))
    journal.close({"type": "error", "code": "slow_reader"})
    found = left(journal)
    assert [each.get("utterance") for each in found[:-1]] == list(range(MESSAGES))
    assert found[-1]["code"] == "slow_reader"


def test_what_waits_is_bounded_in_bytes() -> None:
    journal = Journal()
    journal.put(final(0, "x" * (BYTES - 100)))
    with pytest.raises(Unread):
        journal.put(final(1, "x" * 100))
    journal.put(partial(1, 1))


def fill(journal: Journal) -> None:
    for number in range(100):
        journal.put(final(number, "x" * 100))


def test_beyond_the_bound_for_all_who_holds_most_repeats_less_and_then_takes_no_more() -> None:
    common = Common(2000)
    small, large = (Journal(keep=10.0, common=common) for _ in range(2))
    small.put(final(0, "x" * 100))
    taken(small, 1)
    for number in range(30):
        large.put(final(number, "x" * 100))
        taken(large, 1)
    assert small.first == 0
    assert 0 < large.first < large.last
    assert small.size + large.size < 2000
    with pytest.raises(Unread, match="all streams"):
        fill(large)
    assert large.first == large.last  # what was kept went first
    small.put(final(1))
    large.forget()
    assert not common.full
    assert [each["text"] for each in left(small)] == [""]


def test_one_ack_waits_at_most_and_it_is_the_newest() -> None:
    journal = Journal()
    for received in (1, 2, 3):
        journal.put({"type": "ack", "received": received})
    assert [each["received"] for each in left(journal)] == [3]


def taken(journal: Journal, count: int) -> list[dict[str, object]]:
    async def take() -> list[dict[str, object]]:
        return [json.loads(await journal.take() or "null") for _ in range(count)]

    return asyncio.run(take())


def test_what_has_left_comes_again_with_its_number_and_then_what_waits() -> None:
    journal = Journal(keep=10.0)
    for number in range(5):
        journal.put(final(number))
    first = taken(journal, 4)
    journal.put(partial(5, 1))
    journal.put(partial(5, 2))
    for last in (0, 1, 1):
        journal.rewind(last)
        assert taken(journal, 3 - last) == first[last + 1 :]
    assert (journal.first, journal.last) == (2, 3)
    found = left(journal)
    assert [each["seq"] for each in found] == [4, 5]
    assert found[-1]["revision"] == 2


def test_a_partial_that_has_left_keeps_its_number_and_a_newer_one_gets_another() -> None:
    journal = Journal(keep=10.0)
    journal.put(partial(0, 1))
    assert taken(journal, 1)[0]["revision"] == 1
    journal.put(partial(0, 2))
    journal.put(partial(0, 3))
    journal.rewind(-1)
    assert [(each["seq"], each["revision"]) for each in left(journal)] == [(0, 1), (1, 3)]


def test_what_has_left_is_let_go_in_time_and_beyond_its_bounds() -> None:
    clock = iter(range(1000))
    journal = Journal(keep=20.0, clock=lambda: float(next(clock)))  # two looks at it a message
    for number in range(100):
        journal.put(final(number))
        taken(journal, 1)
    assert journal.first == 90
    journal = Journal(keep=10.0)
    for number in range(KEPT_MESSAGES + 100):
        journal.put(final(number))
        taken(journal, 1)
    assert journal.first == 100
    for number in range(10):
        journal.put(final(number, "x" * (KEPT_BYTES // 4)))
        taken(journal, 1)
    assert journal.size <= KEPT_BYTES
    assert journal.last - journal.first < 4


def test_nothing_is_kept_where_nobody_may_come_back() -> None:
    journal = Journal()
    journal.put(final(0))
    taken(journal, 1)
    assert journal.size == 0
    assert journal.first == 1
