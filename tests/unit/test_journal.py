"""What waits for a slow reader, and what does not."""

import asyncio
import json

import pytest

from server.journal import BYTES, MESSAGES, Journal, Unread


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


def test_one_ack_waits_at_most_and_it_is_the_newest() -> None:
    journal = Journal()
    for received in (1, 2, 3):
        journal.put({"type": "ack", "received": received})
    assert [each["received"] for each in left(journal)] == [3]
