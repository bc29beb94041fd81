"""`open-speech models`: what is here, and getting more."""

from __future__ import annotations

import sys

from server import assembly
from server.settings import Settings
from streaming.errors import OpenSpeechError
from streaming.models import Catalogue
from streaming.types import Device


def _catalogue(settings: Settings) -> Catalogue:
    gpu = settings.device != "cpu" and assembly.visible_gpus() > 0
    return assembly.make_catalogue(settings, Device("cuda" if gpu else "cpu"))


def show(settings: Settings, *, everything: bool) -> int:
    """A line a model: id, backend, size, languages, tasks, whether it is downloaded."""
    rows = [("MODEL", "BACKEND", "SIZE", "LANGUAGES", "TASKS", "")]
    for entry in _catalogue(settings).entries():
        if not (everything or entry.downloaded):
            continue
        languages = entry.capabilities.languages
        rows.append(
            (
                entry.id,
                entry.backend,
                "" if entry.size is None else f"{entry.size / 1e6:.0f} MB",
                ",".join(languages) if len(languages) < 4 else str(len(languages)),
                ",".join(entry.capabilities.tasks),
                "" if entry.downloaded else "not downloaded",
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(6)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def pull(settings: Settings, names: list[str]) -> int:
    """Download, with a progress bar on a terminal."""
    from tqdm import tqdm

    catalogue = _catalogue(settings)
    failed = False
    for name in names:
        try:
            entry = catalogue.entry(name)
            if entry.downloaded:
                print(f"{entry.id} is there already", file=sys.stderr)
                continue
            with tqdm(
                unit="B", unit_scale=True, desc=entry.id, disable=not sys.stderr.isatty()
            ) as bar:
                for progress in catalogue.fetch(entry):
                    bar.total = progress.total
                    bar.update(progress.done - bar.n)
            print(f"{entry.id} downloaded", file=sys.stderr)
        except OpenSpeechError as error:
            failed = True
            print(f"open-speech: {error}", file=sys.stderr)
    return int(failed)


def remove(settings: Settings, names: list[str]) -> int:
    """Delete downloads."""
    catalogue = _catalogue(settings)
    failed = False
    for name in names:
        try:
            gone = catalogue.remove(name)
            said = "removed" if gone else "is not downloaded"
            print(f"{name} {said}", file=sys.stderr)
            failed = failed or not gone
        except OpenSpeechError as error:
            failed = True
            print(f"open-speech: {error}", file=sys.stderr)
    return int(failed)
