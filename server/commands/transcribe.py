"""`open-speech transcribe`: files through the same engine, in this process."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from server import assembly, fields, formats, transcriptions
from server.settings import Settings
from streaming.engine import Engine
from streaming.errors import OpenSpeechError
from streaming.types import RATE, Options, Progress, Recording, Segment, Summary


def run(settings: Settings, given: dict[str, Any]) -> int:
    """All files; 0 if each gave its text, else 1."""
    return asyncio.run(_run(settings, given))


async def _run(settings: Settings, given: dict[str, Any]) -> int:
    settings = replace(settings, allow_downloads="any")  # whoever types the name wants it
    where = assembly.device(settings)
    catalogue = assembly.make_catalogue(settings, where)
    notice = await asyncio.to_thread(catalogue.settle)
    if notice and not given["model_name"]:
        print(f"open-speech: {notice}", file=sys.stderr)
    engine = assembly.make_engine(settings, catalogue, where)
    wanted = [
        ("model", given["model_name"] or ""),
        ("language", given["language"] or ""),
        ("prompt", given["prompt"]),
        ("hotwords", given["hotwords"]),
        ("response_format", "text" if given["format"] == "txt" else "verbose_json"),
    ]
    options, _ = fields.parse(fields.Form(wanted), settings, task=given["task"])
    failed = False
    try:
        for name in given["files"]:
            try:
                segments, summary = await _transcribe(engine, settings, Path(name), options)
            except (OpenSpeechError, OSError) as error:
                failed = True
                reason = error.strerror if isinstance(error, OSError) else error
                print(f"open-speech: {name}: {reason}", file=sys.stderr)
                continue
            _write(name, _shaped(segments, summary, options, given), given)
    finally:
        await engine.aclose()
    return int(failed)


async def _transcribe(
    engine: Engine, settings: Settings, path: Path, options: Options
) -> tuple[list[Segment], Summary]:
    from tqdm import tqdm

    with path.open("rb"):
        pass  # a missing file is told from a broken one
    segments: list[Segment] = []
    recording = Recording(path, settings.max_audio_seconds)
    quiet = not sys.stderr.isatty()
    with tqdm(
        unit="s",
        desc=path.name,
        disable=quiet,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio, {remaining} left",
        total=1,
    ) as bar:
        async with aclosing(engine.transcribe(recording, options)) as items:
            async for item in items:
                match item:
                    case Segment():
                        segments.append(item)
                    case Progress(position, total):
                        bar.total = (total or position) / RATE
                        bar.update(position / RATE - bar.n)
                    case Summary():
                        return segments, item
    raise AssertionError("a transcription ends in its summary")


def _shaped(
    segments: list[Segment], summary: Summary, options: Options, given: dict[str, Any]
) -> str:
    width, lines = given["max_line_width"], given["max_line_count"]
    match given["format"]:
        case "srt":
            return formats.srt(formats.cues(segments, width=width, lines=lines))
        case "vtt":
            return formats.vtt(formats.cues(segments, width=width, lines=lines))
        case "tsv":
            return formats.tsv(segments)
        case "json":
            output = fields.Output("verbose_json", words=True)
            return (
                json.dumps(
                    transcriptions.verbose(segments, summary, options, output), ensure_ascii=False
                )
                + "\n"
            )
        case _:
            return formats.text(segments) + "\n"


def _write(name: str, text: str, given: dict[str, Any]) -> None:
    if given["output"] is None or given["output"] == "-":
        if len(given["files"]) > 1 and given["format"] == "txt":
            text = f"{name}: {text}"
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    folder = Path(given["output"])
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{Path(name).stem}.{given['format']}"
    target.write_text(text, "utf-8")
    print(target, file=sys.stderr)
