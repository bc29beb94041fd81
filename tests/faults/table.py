"""Writes the table of `docs/reliability.md` from the tests: `python -m tests.faults.table`."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by python -m tests.faults.table -->", "<!-- end of faults -->"


@dataclass(frozen=True, order=True)
class Row:
    id: str
    fault: str
    how: str
    happens: str
    cases: int
    test: str


def rows() -> list[Row]:
    """A row for each mark, in the order of their ids."""
    found = [row for path in HERE.glob("test_*.py") for row in _rows(path)]
    twice = {row.id for row in found if sum(each.id == row.id for each in found) > 1}
    assert not twice, f"two tests are called {twice}"
    return sorted(found)


def _rows(path: Path) -> Iterator[Row]:
    module = importlib.import_module(f"tests.faults.{path.stem}")
    for name, test in vars(module).items():
        if not name.startswith("test_") or getattr(test, "__module__", "") != module.__name__:
            continue
        marks = getattr(test, "pytestmark", [])
        cases = [mark.args[1] for mark in marks if mark.name == "parametrize"]
        how = " ".join((test.__doc__ or "").split())
        for mark in marks:
            if mark.name == "fault":
                yield _row(mark, how, math.prod(map(len, cases)), f"{path.name}::{name}")
        for values in cases:
            for value in values:
                for mark in getattr(value, "marks", ()):
                    if mark.name == "fault":
                        yield _row(mark, how, 1, f"{path.name}::{name}")


def _row(mark: Any, how: str, cases: int, test: str) -> Row:
    assert len(mark.args) == 3, f"{test}: fault takes an id, the fault and what happens"
    assert how, f"{test} has no docstring that says how the fault is produced"
    return Row(*mark.args[:2], how, mark.args[2], cases, test)


def table() -> str:
    """The rows as the page has them."""
    found = rows()
    lines = [
        f"{len(found)} faults and attacks, in {sum(row.cases for row in found)} cases.",
        "",
        "| | fault or attack | how it is produced | what happens | words lost | cases |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.id} | {_cell(row.fault)} | {_cell(row.how)} | {_cell(row.happens)} | 0 | {row.cases} |"
        for row in found
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.rstrip(".").replace("|", "\\|")


def page(old: str) -> str:
    """`old` with the table as it should be."""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    print(f"{len(rows())} rows", file=sys.stderr)
