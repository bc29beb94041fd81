"""The table of `docs/reliability.md` says what the tests do."""

import pytest

from tests.faults import table


@pytest.mark.quick
def test_the_page_is_up_to_date() -> None:
    said = table.PAGE.read_text("utf-8")
    assert table.page(said) == said, "run python -m tests.faults.table"
