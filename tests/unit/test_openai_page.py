"""`docs/openai.md` names for each part of the contract the test that shows it: there is one for each, by that name."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "openai.md").read_text("utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def rows() -> list[list[str]]:
    """Of all tables that have a column `test`."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        head, _, *rest = block.splitlines()
        if cells(head)[-1] == "test":
            found += [cells(line) for line in rest]
    return found


TESTS = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
}
CONVERSATIONS = {path.stem for path in (ROOT / "tests/protocol/realtime").glob("*.txt")}


def test_the_page_has_its_tables() -> None:
    assert len(rows()) > 60


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_each_row_names_tests_that_exist(row: list[str]) -> None:
    named = re.findall(r"`(\w+)`", row[-1])
    assert named, "each feature has a test"
    assert re.sub(r"`\w+`|[, |]", "", row[-1]) == ""
    for each in named:
        assert each in TESTS or each in CONVERSATIONS, each


def test_tests_in_the_text_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named - TESTS == set()


def test_every_recorded_conversation_is_named() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert CONVERSATIONS - named == {"manual_next_turn_early"}
