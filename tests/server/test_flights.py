"""Flight recordings of whole servers: whichever dialect a stream speaks, a replay says what it said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server import assembly, flight
from server.commands import replay
from server.settings import Settings
from streaming.types import Device
from tests import toy
from tests.clients.test_many_realtime import hear
from tests.clients.test_openai_realtime import VAD, session
from tests.fakes import lines
from tests.server.test_metrics import speak
from tests.serving import running, with_toy


def flights(folder: Path) -> list[flight.Flight]:
    found = [flight.read(path) for path in sorted(folder.glob("*" + flight.ENDING))]
    assert all(each.whole for each in found)
    return found


def again(found: flight.Flight) -> list[replay.Said]:
    """What the toy says of it now."""

    async def run() -> list[replay.Said]:
        settings = Settings(model=(f"toy={toy.build()}",), offline=True, device="cpu")
        where = Device(workers=2, threads=1)
        catalogue = assembly.make_catalogue(settings, where)
        engine = assembly.make_engine(settings, catalogue, where)
        try:
            return list(replay.said(await replay.replay(engine, found, "toy", 0)))
        finally:
            await engine.aclose()

    return asyncio.run(asyncio.wait_for(run(), 120))


def test_a_native_stream_is_recorded_and_replayed(tmp_path: Path) -> None:
    with running(with_toy(flight_dir=tmp_path)) as url:
        said = asyncio.run(asyncio.wait_for(speak(url), 120))
    (found,) = flights(tmp_path)
    name = found.header["stream"]
    assert str(said[0]["session"]).startswith(name)
    finals = [each["text"] for each in said if each["type"] == "final"]
    assert [each.text for each in replay.said(found.records)] == finals == [
        each.text for each in again(found)
    ]  # fmt: skip


@pytest.mark.parametrize("detection", [VAD, None], ids=["server_vad", "manual"])
def test_a_realtime_session_is_recorded_and_replayed(
    tmp_path: Path, detection: dict[str, object] | None
) -> None:
    given = session(detection)
    with running(with_toy(flight_dir=tmp_path)) as url:
        heard = asyncio.run(asyncio.wait_for(hear(url, given, lines()[0].samples), 120))
    found = [each for each in flights(tmp_path) if len(each.samples)]
    assert heard
    told = [each.text for flown in found for each in replay.said(flown.records) if each.text]
    assert " ".join(told) == heard
    assert [each.text for flown in found for each in again(flown) if each.text] == told
