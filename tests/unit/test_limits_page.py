"""The table of limits in `docs/deployment.md` names settings and constants that exist, with the values they have."""

import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from server.settings import Settings
from streaming.types import RATE

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
PLACES = ("server", "server.protocols", "streaming.audio", "streaming")


def rows() -> list[list[str]]:
    text = PAGE.read_text("utf-8").partition("### Limits of requests\n")[2].partition("\n#")[0]
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return found[1:]


def constant(module: str, name: str) -> object:
    """A constant of a module, or of a class in it."""
    module, _, owner = module.partition(".")
    for place in PLACES:
        try:
            found = importlib.import_module(f"{place}.{module}")
        except ImportError:
            continue
        return getattr(getattr(found, owner) if owner else found, name)
    raise AssertionError(f"there is no {module}")


def numbers(text: str) -> set[float]:
    """Those that a sentence names, in whatever unit it does."""
    units = {"KiB": 2**10, "Ki": 2**10, "MiB": 2**20, "GiB": 2**30, "h": 3600, "min": 60}
    found = set()
    for number, unit in re.findall(r"(\d[\d,]*)(?: (KiB|MiB|GiB|Ki|h|min)\b)?", text):
        value = float(number.replace(",", ""))
        scaled = value * units.get(unit, 1)
        found |= {value, scaled, scaled * RATE, value * 1000}
    return found


def test_there_are_enough() -> None:
    assert len(rows()) >= 20


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_limits_are_what_the_page_says(row: list[str]) -> None:
    _, limit, where, _ = row
    settings = {field.name: field.default for field in fields(Settings)}
    module = ""
    for quoted in re.findall(r"`([^`]+)`", where):
        if quoted.startswith("STT_"):
            value = settings[quoted.removeprefix("STT_").lower()]
            value = value * 2**20 if quoted.endswith("_MB") else value
        else:
            module = quoted.rpartition(".")[0] or module
            value = constant(module, quoted.rpartition(".")[2])
        values = value if isinstance(value, tuple) else (value,)
        for each in values:
            assert each in numbers(limit), (quoted, each)
