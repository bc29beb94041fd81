"""The catalogue: which models there are, under which names, and where their weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from streaming.backends.base import Capabilities


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue."""

    id: str
    """A hub id, a folder's name in the model directory, a name from the settings, or ``pocketsphinx``."""
    backend: str
    path: Path | None
    """Where the weights lie; None while they are not downloaded."""
    repository: str | None
    """Hub id to download from; None for local models."""
    capabilities: Capabilities
    """Languages and tasks; for weights not yet seen, as published."""
    aliases: tuple[str, ...] = ()
    size: int | None = None
    """Bytes on disk, or of the download where known."""
    licence: str | None = None
    created: int = 0
    """Unix seconds."""


class Catalogue(Protocol):
    """Stands in until the real one lands."""

    def entries(self) -> list[Entry]: ...
