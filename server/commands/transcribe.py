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
from server.configuration import Misconfigured, flag
from server.settings import Settings
from streaming.engine import Engine
from streaming.errors import InputError, OpenSpeechError
from streaming.types import RATE, Options, Progress, Recording, Segment, Summary


def run(settings: Settings, given: dict[str, Any]) -> int:
    """All files; 0 if each gave its text, else 1."""
    return asyncio.run(_run(settings, given))


async def _run(settings: Settings, given: dict[str, Any]) -> int:
    options, output = _asked(settings, given)
    targets = _targets(given)
    settings = replace(settings, allow_downloads="any")  # whoever types the name wants it
    where = assembly.device(settings)
    catalogue = assembly.make_catalogue(settings, where)
    notice = await asyncio.to_thread(catalogue.settle)
    if notice and not given["model_name"]:
        print(f"open-speech: {notice}", file=sys.stderr)
    # One file and then the end: a process that outlives a crash would help nobody.
    engine = assembly.make_engine(replace(settings, runners=False), catalogue, where)
    failed = False
    try:
        for at, name in enumerate(given["files"]):
            try:
                segments, summary = await _transcribe(engine, settings, Path(name), options)
            except (OpenSpeechError, OSError) as error:
                failed = True
                print(f"open-speech: {name}: {_reason(error)}", file=sys.stderr)
                continue
            text = _shaped(segments, summary, options, output, given["format"])
            if at not in targets and len(given["files"]) > 1 and given["format"] == "txt":
                text = f"{name}: {text}"
            _write(text, targets.get(at))
    finally:
        await engine.aclose()
    return int(failed)


def _reason(error: OpenSpeechError | OSError) -> str:
    """What went wrong, in the words of the command line."""
    if isinstance(error, OSError):
        return str(error.strerror)
    here = "open-speech models list --all lists them, and --model NAME=FOLDER names a folder"
    return str(error).replace("GET /v1/models lists them", here)


def _asked(settings: Settings, given: dict[str, Any]) -> tuple[Options, fields.Output]:
    """The flags as a request. Raises Misconfigured."""
    wanted = [
        ("model", given["model_name"] or ""),
        ("language", given["language"] or ""),
        ("prompt", given["prompt"]),
        ("hotwords", given["hotwords"]),
        ("response_format", "text" if given["format"] == "txt" else "verbose_json"),
        ("max_line_width", given["max_line_width"]),
        ("max_line_count", given["max_line_count"]),
    ]
    try:
        return fields.parse(fields.Form(wanted), settings, task=given["task"])
    except InputError as error:
        name = error.param or ""
        raise Misconfigured(str(error).replace(name, flag(name), 1)) from None


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
                        if not bar.n:
                            bar.refresh()  # how long it is, before anything of it is done
                        bar.update(position / RATE - bar.n)
                    case Summary():
                        return segments, item
    raise AssertionError("a transcription ends in its summary")


def _shaped(
    segments: list[Segment], summary: Summary, options: Options, output: fields.Output, form: str
) -> str:
    match form:
        case "srt":
            return formats.srt(formats.cues(segments, width=output.width, lines=output.lines))
        case "vtt":
            return formats.vtt(formats.cues(segments, width=output.width, lines=output.lines))
        case "tsv":
            return formats.tsv(segments)
        case "json":
            output = replace(output, words=True)
            found = transcriptions.verbose(segments, summary, options, output)
            return json.dumps(found, ensure_ascii=False) + "\n"
        case _:
            return formats.text(segments) + "\n"


def _targets(given: dict[str, Any]) -> dict[int, Path]:
    """The file for each recording, by its number; none for stdout. Of one name, the second is `name-2`."""
    if given["output"] in (None, "-"):
        return {}
    folder = Path(given["output"])
    folder.mkdir(parents=True, exist_ok=True)
    taken = {str(Path(name).resolve()).casefold() for name in given["files"]}
    targets = {}
    for at, name in enumerate(given["files"]):
        stem, number = Path(name).stem, 1
        target = folder / f"{stem}.{given['format']}"
        while str(target.resolve()).casefold() in taken:
            number += 1
            target = folder / f"{stem}-{number}.{given['format']}"
        taken.add(str(target.resolve()).casefold())
        targets[at] = target
    return targets


def _write(text: str, target: Path | None) -> None:
    if target is not None:
        target.write_text(text, "utf-8")
        print(target, file=sys.stderr)
        return
    sys.stdout.write(text)
    sys.stdout.flush()
