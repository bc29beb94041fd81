"""Writes the table of `docs/reliability.md` from the tests: `python -m tests.faults.table`."""

from __future__ import annotations

import ast
import importlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"
BESIDE, OWN = "alive", "spelt"
"""What the tests use of `tests.faults.process` to count words: those of an honest stream beside the fault, and those that
they speak themselves."""
LOST = {BESIDE: "0", OWN: "0 of its own", "": "–"}
BEGIN, END = "<!-- faults: written by python -m tests.faults.table -->", "<!-- end of faults -->"


@dataclass(frozen=True, order=True)
class Row:
    id: str
    fault: str
    how: str
    happens: str
    cases: int
    test: str
    counts: str
    """Whose words it counts; empty where it counts none."""


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
        used = _used(module.__name__, name)
        counts = next((each for each in (BESIDE, OWN) if each in used), "")
        for mark in marks:
            if mark.name == "fault":
                yield _row(mark, how, math.prod(map(len, cases)), f"{path.name}::{name}", counts)
        for values in cases:
            for value in values:
                for mark in getattr(value, "marks", ()):
                    if mark.name == "fault":
                        yield _row(mark, how, 1, f"{path.name}::{name}", counts)


def _row(mark: Any, how: str, cases: int, test: str, counts: str) -> Row:
    assert len(mark.args) == 3, f"{test}: fault takes an id, the fault and what happens"
    assert how, f"{test} has no docstring that says how the fault is produced"
    return Row(*mark.args[:2], how, mark.args[2], cases, test, counts)


@cache
def _module(name: str) -> tuple[dict[str, ast.stmt], dict[str, tuple[str, str]]]:
    """What a module of the tests defines, and what it imports from others, by name."""
    defined: dict[str, ast.stmt] = {}
    imported: dict[str, tuple[str, str]] = {}
    for each in ast.parse(
        (HERE.parents[1] / f"{name.replace('.', '/')}.py").read_text("utf-8")
    ).body:
        match each:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                defined[each.name] = each
            case ast.Assign(targets=[ast.Name(id=target)]):
                defined[target] = each
            case ast.ImportFrom(module=str(source)) if source.startswith("tests.faults."):
                imported |= {
                    known.asname or known.name: (source, known.name) for known in each.names
                }
    return defined, imported


def _used(module: str, name: str, seen: set[tuple[str, str]] | None = None) -> set[str]:
    """Which of the two the test, fixture or helper uses, itself or through fixtures and helpers."""
    seen = set() if seen is None else seen
    module, name = _module(module)[1].get(name, (module, name))
    if (module, name) in seen:
        return set()
    seen.add((module, name))
    if module == "tests.faults.process":
        return {name} & {BESIDE, OWN}
    found = _module(module)[0].get(name)
    if found is None:
        return set()
    names = [each for each in ast.walk(found) if isinstance(each, ast.Name)]
    own = {each.id for each in names if isinstance(each.ctx, ast.Store)} - {name}
    wanted = {(module, each.id) for each in names if each.id not in own}
    if isinstance(found, ast.FunctionDef) and (
        name.startswith("test_") or "fixture" in "".join(map(ast.unparse, found.decorator_list))
    ):
        here = _module(module)[0]
        wanted |= {
            (module if each.arg in here else "tests.faults.conftest", each.arg)
            for each in found.args.args
        }
    return set().union(*(_used(*each, seen) for each in wanted))


def table() -> str:
    """The rows as the page has them."""
    found = rows()
    lines = [
        f"{len(found)} faults and attacks, in {sum(row.cases for row in found)} cases. An honest stream speaks beside "
        f"{sum(row.counts == BESIDE for row in found)} of them; {sum(row.counts == OWN for row in found)} count the "
        f"words that they speak themselves, {sum(not row.counts for row in found)} none.",
        "",
        "| | fault or attack | how it is produced | what happens | words lost | cases |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.id} | {_cell(row.fault)} | {_cell(row.how)} | {_cell(row.happens)} | {LOST[row.counts]} | {row.cases} |"
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
