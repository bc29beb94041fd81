"""`open-speech replay`: a flight recording through the engine once more, and what comes out differently."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import wave
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from server import assembly, flight
from server.flight import Flight
from server.settings import Settings
from streaming.engine import Engine
from streaming.errors import OpenSpeechError
from streaming.types import RATE


@dataclass(frozen=True, slots=True)
class Said:
    """One utterance, as it came out."""

    utterance: int
    start: int | None
    end: int | None
    """In samples; None for one that failed."""
    text: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was."""

    utterance: int
    what: str
    """`boundary`, `final`, `committed`, `missing` or `extra`."""
    recorded: str
    replayed: str


def run(settings: Settings, given: dict[str, Any]) -> int:
    """0 if all is as it was, else 1."""
    path = Path(given["file"])
    found = flight.read(path)
    if given["wav"]:
        _write_audio(found, Path(given["wav"]))
        print(f"open-speech: {given['wav']} holds the audio", file=sys.stderr)
    if given["show"]:
        for record in (found.header, *found.records):
            print(json.dumps({name: value for name, value in record.items() if name != "audio"}))
    if given["wav"] or given["show"]:
        return 0
    events = asyncio.run(_replay(settings, found, given["model_name"], given["speed"]))
    recorded, replayed = list(said(found.records)), list(said(events))
    finished = any(record.get("do") == "end" for record in found.records) and found.whole
    differences = compare(recorded, replayed, committed(found.records), finished=finished)
    if given["json"]:
        print(json.dumps(_report(found, recorded, replayed, differences)))
    else:
        _tell(found, recorded, differences)
    return int(bool(differences))


async def _replay(
    settings: Settings, found: Flight, model: str | None, speed: float
) -> list[dict[str, Any]]:
    where = assembly.device(settings)
    catalogue = assembly.make_catalogue(settings, where)
    engine = assembly.make_engine(settings, catalogue, where)
    try:
        return await replay(engine, found, model or found.header["model"], speed)
    finally:
        await engine.aclose()


async def replay(engine: Engine, found: Flight, model: str, speed: float) -> list[dict[str, Any]]:
    """The events, as records. `speed`: times as fast as it was; 0: as fast as the engine takes it."""
    stream = await engine.open_stream(replace(found.options, model=model), found.after)
    events: list[dict[str, Any]] = []

    async def listen() -> None:
        try:
            async for event in stream:
                events.append(flight.plain(event))
        except OpenSpeechError as error:
            events.append({"error": type(error).__name__, "message": error.message})

    began = time.monotonic()
    listening = asyncio.create_task(listen())
    try:
        for record in found.records:
            if speed and "do" in record:
                await asyncio.sleep(began + record["t"] / speed - time.monotonic())
            match record.get("do"):
                case "send":
                    await stream.send(record["audio"])
                case "commit":
                    await stream.commit(record["marker"])
                case "end":
                    break
                case _:
                    pass
        await stream.end()  # also where the client left: what it said until then is compared
        await listening
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await stream.aclose()
    return events


def said(records: list[dict[str, Any]]) -> Iterator[Said]:
    """Finals and failures, in order."""
    for record in records:
        match record.get("event"):
            case "Final":
                yield Said(
                    record["utterance"], record["start"], record["end"], record["text"].strip()
                )
            case "Failed":
                yield Said(record["utterance"], None, None, record["error"], failed=True)
            case _:
                pass


def committed(records: list[dict[str, Any]]) -> dict[int, str]:
    """The longest text of each utterance that was promised not to change."""
    found: dict[int, str] = {}
    for record in records:
        if record.get("event") == "Partial":
            found[record["utterance"]] = record["committed"].strip()
    return found


def compare(
    recorded: list[Said], replayed: list[Said], promised: dict[int, str], *, finished: bool
) -> list[Difference]:
    """What is not as it was. Where the record was cut off, what would have come after it is no difference."""
    before = {each.utterance: each for each in recorded}
    now = {each.utterance: each for each in replayed}
    found = []
    for number in sorted(before.keys() | now.keys()):
        old, new = before.get(number), now.get(number)
        promise = promised.get(number, "")
        if new is None and old is not None:
            found.append(Difference(number, "missing", old.text, ""))
        elif old is None and new is not None:
            if finished:
                found.append(Difference(number, "extra", "", new.text))
            elif not new.text.startswith(promise):
                found.append(Difference(number, "committed", promise, new.text))
        elif old is not None and new is not None:
            if (old.start, old.end) != (new.start, new.end):
                found.append(Difference(number, "boundary", _span(old), _span(new)))
            if (old.text, old.failed) != (new.text, new.failed):
                kept = new.text.startswith(promise)
                found.append(
                    Difference(number, "final" if kept else "committed", old.text, new.text)
                )
    return found


def _span(each: Said) -> str:
    if each.start is None or each.end is None:
        return "failed"
    return f"{each.start / RATE:.3f}–{each.end / RATE:.3f} s"


def _report(
    found: Flight, recorded: list[Said], replayed: list[Said], differences: list[Difference]
) -> dict[str, Any]:
    return {
        "same": not differences,
        "model": found.header["model"],
        "recorded_at": found.header["at"],
        "seconds": round(len(found.samples) / RATE, 3),
        "whole": found.whole,
        "utterances": {"recorded": len(recorded), "replayed": len(replayed)},
        "differences": [asdict(each) for each in differences],
        "recorded": [asdict(each) for each in recorded],
        "replayed": [asdict(each) for each in replayed],
    }


def _tell(found: Flight, recorded: list[Said], differences: list[Difference]) -> None:
    cut = "" if found.whole else ", cut off"
    header = found.header
    print(
        f"{len(found.samples) / RATE:.1f} s of audio, {len(recorded)} utterances, model {header['model']},"
        f" open-speech {header['version']}, {header['at']}{cut}"
    )
    by_number: dict[int, list[Difference]] = {}
    for each in differences:
        by_number.setdefault(each.utterance, []).append(each)
    for one in recorded:
        if one.utterance not in by_number:
            print(f"  {one.utterance:3d}  {_span(one)}  same  {one.text}")
    for number, group in by_number.items():
        for each in group:
            print(f"  {number:3d}  {each.what} differs")
            print(f"       recorded  {each.recorded}")
            print(f"       replayed  {each.replayed}")
    print(
        "no difference"
        if not differences
        else f"{len(by_number)} of {len(by_number.keys() | {each.utterance for each in recorded})} utterances differ"
    )


def _write_audio(found: Flight, path: Path) -> None:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        scaled = np.rint(found.samples * 32768).clip(-32768, 32767)
        out.writeframes(scaled.astype("<i2").tobytes())
