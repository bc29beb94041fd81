"""The server understands no less than faster_whisper's own `transcribe` does, with the same model."""

import pytest

from tests.perf.accuracy import Found, measure


@pytest.fixture(scope="module")
def found() -> Found:
    return measure()


def test_no_language_is_worse_by_more_than_a_word_and_all_together_by_none(found: Found) -> None:
    spoken = [row for row in found.rows if row.name not in ("translation", "long recording")]
    assert {row.name for row in spoken} == {"en", "fr", "de", "es"}
    for row in spoken:
        assert row.ours <= row.theirs + 1, row
    assert sum(row.ours for row in found.rows) <= sum(row.theirs for row in found.rows)


@pytest.mark.parametrize("name", ["translation", "long recording"])
def test_translations_and_the_long_recording_are_no_worse(found: Found, name: str) -> None:
    (row,) = [row for row in found.rows if row.name == name]
    assert row.ours <= row.theirs, row


def test_words_begin_where_they_are_spoken(found: Found) -> None:
    assert len(found.start_errors) > 200
    assert found.median_start_error <= 0.15
