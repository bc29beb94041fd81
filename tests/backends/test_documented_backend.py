"""The recogniser that docs/backends.md shows works as it says."""

import asyncio
import re
import types
from pathlib import Path
from typing import Any

from streaming.backends.base import WindowBackend
from streaming.local import LocalEngine, Plan
from streaming.models import Catalogue
from streaming.types import Device, Options, Recording, Segment
from streaming.vad.silero import Silero
from tests.fakes import lines

DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"


def documented() -> Any:
    """The module in the document."""
    source = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)[0]
    module = types.ModuleType("shouting")
    exec(compile(source, str(DOCUMENT), "exec"), module.__dict__)
    return module


def test_the_documented_recogniser_serves_a_folder_of_the_model_directory(tmp_path: Path) -> None:
    folder = tmp_path / "shout"
    folder.mkdir()
    (folder / "shouting.txt").write_text("what a day")
    loaders = {"shouting": documented().LOADER}
    assert isinstance(loaders["shouting"].load(folder, Device()), WindowBackend)

    async def run() -> list[Segment]:
        catalogue = Catalogue(loaders, directory=tmp_path, default="shout", offline=True)
        engine = LocalEngine(catalogue, loaders, Silero, Plan(Device(workers=2)))
        try:
            items = engine.transcribe(Recording(lines()[0].path), Options(words=True))
            return [item async for item in items if isinstance(item, Segment)]
        finally:
            await engine.aclose()

    segments = asyncio.run(run())
    assert " ".join(segment.text.strip() for segment in segments) == "WHAT A DAY"
    assert [word.text for segment in segments for word in segment.words] == [" WHAT", " A", " DAY"]
