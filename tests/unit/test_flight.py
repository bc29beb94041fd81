"""The flight recorder: what it keeps, what it survives, and what a replay finds."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import flight
from server.commands import replay
from server.commands.replay import Difference, Said, compare
from server.flight import Flight, NoFlight, Recorder, Writer, read
from server.settings import Settings
from streaming.backends import loaders
from streaming.engine import Engine
from streaming.errors import Overloaded
from streaming.events import Event, Final
from streaming.local import LocalEngine, LocalStream, Plan
from streaming.models import Catalogue
from streaming.types import RATE, Device, Options, Samples
from tests.drive import speak
from tests.fakes import Loudness

SPEECH = speak([1, 2, 3, 1.0, 4, 5, 1.0, 6, 1.0])


def engine(folder: Path) -> LocalEngine:
    """The real one, with words that are written into the samples."""
    (folder / "scripted").mkdir(exist_ok=True)
    (folder / "scripted" / "scripted").touch()
    catalogue = Catalogue(
        loaders(), default="said", paths={"said": folder / "scripted"}, offline=True
    )
    plan = Plan(Device(workers=2), runners=False)
    return LocalEngine(catalogue, loaders(), Loudness, plan)


def settings(folder: Path, **more: int) -> Settings:
    return Settings(flight_dir=folder / "flights", **more)  # type: ignore[arg-type]


async def hear(
    engine: Engine, samples: Samples, piece: int = 1600, *, end: bool = True
) -> list[Event]:
    stream = await engine.open_stream(Options(pre_roll_ms=0))
    for at in range(0, len(samples), piece):
        await stream.send(samples[at : at + piece])
        if at == 8 * piece:
            await stream.commit("here")
    if not end:
        await stream.aclose()
        return []
    await stream.end()
    events = [event async for event in stream]
    await stream.aclose()
    return events


def recorded(
    folder: Path, samples: Samples = SPEECH, *, end: bool = True
) -> tuple[Path, list[Event]]:
    """The file of one stream, and its events."""

    async def scenario() -> list[Event]:
        recorder = Recorder(engine(folder), settings(folder))
        try:
            return await hear(recorder, samples, end=end)
        finally:
            await recorder.aclose()

    events = asyncio.run(scenario())
    (path,) = (folder / "flights").iterdir()
    return path, events


def replayed(folder: Path, found: Flight) -> list[dict[str, object]]:
    async def scenario() -> list[dict[str, object]]:
        other = engine(folder)
        try:
            return await replay.replay(other, found, found.header["model"], 0)
        finally:
            await other.aclose()

    return asyncio.run(scenario())


def test_a_file_holds_the_audio_the_options_and_all_that_was_said_and_decided(
    tmp_path: Path,
) -> None:
    path, events = recorded(tmp_path)
    found = read(path)
    assert found.whole
    assert found.header["model"] == "said"
    assert found.header["backend"] == "scripted"
    assert found.options == Options(pre_roll_ms=0, window="auto")
    assert np.array_equal(found.samples, SPEECH)
    told = [record for record in found.records if "event" in record]
    assert told == [
        {"t": record["t"], **json.loads(json.dumps(flight.plain(event)))}
        for record, event in zip(told, events, strict=True)
    ]
    decodes = [record for record in found.records if "decode" in record]
    assert any(record["text"] == " w1 w2 w3" for record in decodes)
    assert [
        record["do"] for record in found.records if record.get("do") != "send" and "do" in record
    ] == [
        "commit",
        "end",
        "close",
    ]
    moments = [record["t"] for record in found.records]
    assert moments == sorted(moments)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_replay_says_the_same(tmp_path: Path) -> None:
    path, events = recorded(tmp_path)
    found = read(path)
    again = replayed(tmp_path, found)
    before, now = list(replay.said(found.records)), list(replay.said(again))
    assert len(before) == sum(isinstance(event, Final) for event in events) >= 3
    assert compare(before, now, replay.committed(found.records), finished=True) == []


def test_audio_that_is_refused_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = LocalStream.send
    most = SPEECH[:32000]

    async def send(self: LocalStream, samples: Samples) -> None:
        if self.received >= len(most):
            raise Overloaded("this machine cannot keep up")
        await taken(self, samples)

    async def scenario() -> None:
        recorder = Recorder(engine(tmp_path), settings(tmp_path))
        try:
            stream = await recorder.open_stream(Options(pre_roll_ms=0))
            for at in range(0, len(most), 1600):
                await stream.send(most[at : at + 1600])
            with pytest.raises(Overloaded):
                await stream.send(SPEECH[len(most) :])
            await stream.end()
            async for _ in stream:
                pass
            await stream.aclose()
        finally:
            await recorder.aclose()

    monkeypatch.setattr(LocalStream, "send", send)
    asyncio.run(scenario())
    (path,) = (tmp_path / "flights").iterdir()
    found = read(path)
    assert np.array_equal(found.samples, most)
    before, now = list(replay.said(found.records)), list(replay.said(replayed(tmp_path, found)))
    assert compare(before, now, replay.committed(found.records), finished=True) == []


def test_a_replay_tells_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = recorded(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"text": " w6"', b'"text": " w7"'))
    monkeypatch.setattr(replay.assembly, "make_engine", lambda *_: engine(tmp_path))
    asked = {
        "file": str(path),
        "wav": None,
        "show": False,
        "model_name": None,
        "speed": 0,
        "json": True,
    }
    assert replay.run(Settings(device="cpu", offline=True), asked) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["same"]
    (difference,) = told["differences"]
    assert (difference["recorded"], difference["replayed"]) == ("w7", "w6")
    path.write_bytes(data)
    assert replay.run(Settings(device="cpu", offline=True), {**asked, "json": False}) == 0
    assert capsys.readouterr().out.endswith("no difference\n")


def test_what_was_cut_off_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    path, _ = recorded(tmp_path)
    data = path.read_bytes()
    all_of_it = read(path)
    cut = tmp_path / "cut.flight"
    for length in [*range(len(data) - 200, len(data) - 1), *range(700, len(data), 1777)]:
        cut.write_bytes(data[:length])
        found = read(cut)
        assert not found.whole
        count = len(found.records)
        assert [record["t"] for record in found.records] == [
            record["t"] for record in all_of_it.records[:count]
        ]
    cut.write_bytes(data[: len(data) // 2])
    half = read(cut)
    before, now = list(replay.said(half.records)), list(replay.said(replayed(tmp_path, half)))
    assert len(now) > len(before)
    assert compare(before, now, replay.committed(half.records), finished=False) == []


def test_a_client_that_leaves_leaves_a_record_too(tmp_path: Path) -> None:
    path, _ = recorded(tmp_path, end=False)
    found = read(path)
    assert found.whole
    assert np.array_equal(found.samples, SPEECH)
    assert found.records[-1]["do"] == "close"


def test_something_else_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"RIFF", b'{"flight": 99}\n', b"[]\n"):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(NoFlight, match="no flight recording"):
            read(tmp_path / "x")


@given(
    st.lists(
        st.one_of(st.integers(-32768, 32767).map(lambda x: x / 32768), st.floats(-1, 1, width=32)),
        max_size=20,
    )
)
def test_audio_comes_back_bit_for_bit(values: list[float]) -> None:
    samples = np.array(values, np.float32)
    kind, data = flight._exact(samples)
    format_, scale = flight.SCALE[kind]
    back = np.frombuffer(data, format_).astype(np.float32) / np.float32(scale)
    assert np.array_equal(back, samples)


def test_what_is_kept_is_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    old = tmp_path / "20000101T000000.000-s_old-1.flight"
    old.write_bytes(b"x" * 50_000)
    writer = Writer(tmp_path, 100_000, 3)
    for number in range(5):
        tape = writer.open(f"s_{number}", b"h\n")
        writer.put(tape, b"y" * 20_000)
        writer.close(tape)
        wait_for(lambda tape=tape: tape.done)
    writer.stop()
    left = sorted(tmp_path.iterdir())
    assert [path.name.split("-")[1] for path in left] == ["s_2", "s_3", "s_4"]
    writer = Writer(tmp_path, 50_000, 10)
    tape = writer.open("s_large", b"h\n")
    for _ in range(4):
        writer.put(tape, b"z" * 30_000)
        wait_for(lambda: not tape.pending)
    wait_for(lambda: tape.done)
    writer.stop()
    (left_over,) = tmp_path.iterdir()
    assert left_over.read_bytes().endswith(flight.LAST)
    assert 50_000 < left_over.stat().st_size < 200_000


def test_a_disk_that_cannot_keep_up_costs_the_record_not_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "WAITING", 1000)
    monkeypatch.setattr(flight, "DELAY", 60.0)
    writer = Writer(tmp_path, 10**6, 10)
    tape = writer.open("s_1", b"h\n")
    for _ in range(100):
        writer.put(tape, b"z" * 100)
    assert len(tape.pending) < 1200
    writer.stop()
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().endswith(flight.LAST)


def test_a_disk_that_hangs_is_bounded_over_all_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flight, "ALTOGETHER", 1000)
    monkeypatch.setattr(flight, "DELAY", 0.001)
    hangs, on, write = threading.Event(), threading.Event(), flight._write

    def slow(file: int, data: bytes) -> None:
        hangs.set()
        on.wait(20)
        write(file, data)

    monkeypatch.setattr(flight, "_write", slow)
    writer = Writer(tmp_path, 10**6, 100)
    tapes = [writer.open(f"s_{number}", b"h\n") for number in range(20)]
    assert hangs.wait(20)
    for tape in tapes:
        writer.put(tape, b"z" * 90)
    ended = sum(tape.given_up for tape in tapes)
    assert sum(len(tape.pending) for tape in tapes) <= 1000 + ended * 90
    assert 0 < ended < 20
    assert caplog.text.count("the disk cannot keep up") == ended
    on.set()
    wait_for(lambda: writer._waiting == 0)
    tape = writer.open("s_after", b"h\n")
    writer.put(tape, b"z" * 900)
    assert not tape.given_up, "there is room again"
    writer.stop()
    whole = [path for path in tmp_path.iterdir() if not path.read_bytes().endswith(flight.LAST)]
    assert len(whole) == 21 - ended


def test_a_full_disk_ends_the_record_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flight, "_write", full)

    async def scenario() -> list[Event]:
        recorder = Recorder(engine(tmp_path), settings(tmp_path))
        try:
            return await hear(recorder, SPEECH)
        finally:
            await recorder.aclose()

    assert sum(isinstance(event, Final) for event in asyncio.run(scenario())) >= 3


def wait_for(true: Callable[[], bool]) -> None:
    from threading import Event as Flag

    for _ in range(3000):
        if true():
            return
        Flag().wait(0.01)
    raise AssertionError("it never came true")


SAID = Said(0, 0, RATE, "one two")


@pytest.mark.parametrize(
    ("now", "promise", "finished", "expected"),
    [
        ([SAID], "one", True, []),
        ([], "one", True, ["missing"]),
        ([SAID, Said(1, 0, 1, "x")], "", True, ["extra"]),
        ([SAID, Said(1, 0, 1, "x")], "", False, []),
        ([replace(SAID, end=2 * RATE)], "", True, ["boundary"]),
        ([replace(SAID, text="one too")], "one", True, ["final"]),
        ([replace(SAID, text="won two")], "one", True, ["committed"]),
        ([replace(SAID, start=None, end=None, failed=True)], "", True, ["boundary", "final"]),
    ],
)
def test_differences_have_names(
    now: list[Said], promise: str, finished: bool, expected: list[str]
) -> None:
    found = compare([SAID], now, {0: promise}, finished=finished)
    assert [each.what for each in found] == expected
    assert all(isinstance(each, Difference) for each in found)


def test_the_audio_can_be_taken_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import wave

    path, _ = recorded(tmp_path)
    out = tmp_path / "out.wav"
    asked = {"file": str(path), "wav": str(out), "show": True}
    assert replay.run(Settings(), asked) == 0
    with wave.open(str(out)) as file:
        assert file.getnframes() == len(SPEECH)
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert shown[0]["flight"] == 1
    assert "audio" not in shown[1]
