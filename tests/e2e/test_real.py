"""The comparison on real weights, run against toys that lie in a folder as the hub's repositories do."""

import shutil
from pathlib import Path

import pytest

from streaming.models import Catalogue
from tests import toy
from tests.installed import ROOT
from tests.real.__main__ import MODELS, main

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Toys in the cache layout, under the names of the published models."""
    folder = tmp_path / "hub"
    catalogue = Catalogue({}, offline=True)
    for name in MODELS.split(","):
        repository = catalogue.entry(name).id
        english = name.endswith(".en") or name.startswith("distil")
        place = folder / f"models--{repository.replace('/', '--')}"
        commit = "0" * 40
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        layout = "en" if english else "v3" if "v3" in name else "v2"
        shutil.copytree(toy.build(layout=layout), place / "snapshots" / commit)
    return folder


def test_the_comparison_writes_its_table(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "real.md"
    status = main(
        [
            *("--model-dir", str(hub), "--offline", "--device", "cpu", "--out", str(out)),
            *("--speech", str(ROOT / "tests" / "data" / "speech")),
            *("--languages", "en,fr", "--count", "2", "--paced", "1"),
        ]
    )
    assert status == 0
    rows = [line for line in out.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) == len(MODELS.split(","))
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        errors = [float(cell.rstrip(" %")) for cell in cells[2:5]]
        assert all(0 <= error <= 25 for error in errors), row
        assert cells[5] == "0", row
        assert all(cell.endswith("×") for cell in cells[7:9])
        assert all(cell.endswith("s") for cell in cells[9:11]), row
    assert "| model |" in capsys.readouterr().out
