"""Recognisers, each behind the interface of `base`. Heavy libraries are imported inside the file that needs them."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaming.backends.base import Loader

log = logging.getLogger(__name__)

GROUP = "open_speech.backends"
"""The entry point group that names a backend's `LOADER`."""


def loaders() -> dict[str, Loader]:
    """Every installed backend by its name. Importing one must be cheap: libraries load with the first model."""
    found: dict[str, Loader] = {}
    for point in entry_points(group=GROUP):
        try:
            found[point.name] = point.load()
        except (
            ImportError
        ) as error:  # a backend somebody else wrote must not take the others with it
            log.warning("backend %s cannot be used: %s", point.name, error)
    return found


def canonical(name: str) -> str:
    """`faster-whisper` and `faster_whisper` are one name."""
    return name.strip().lower().replace("-", "_")
