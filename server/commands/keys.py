"""`open-speech keys`: make, show and remove the keys of the keys file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from server import keys
from server.configuration import Misconfigured
from server.keys import Scope
from server.settings import Settings


def add(settings: Settings, name: str, scopes: Sequence[Scope], limits: dict[str, int]) -> int:
    """The key goes to stdout, once; everything else to stderr."""
    file = _file(settings)
    key = keys.add(file, name, scopes, limits)
    print(key)
    print(
        f"{file} holds its hash only: keep it now. A running server takes it within a second.",
        file=sys.stderr,
    )
    return 0


def show(settings: Settings) -> int:
    """A line a key: name, scopes, limits, day."""
    file = _file(settings)
    if not file.exists():
        print(f"there is no {file} yet; open-speech keys add NAME makes it", file=sys.stderr)
        return 0
    rows = [("NAME", "SCOPES", "CREATED", "LIMITS")]
    for key in keys.read(file):
        limits = (f"{name}={'none' if value is None else value}" for name, value in key.limits)
        listed = ",".join(scope for scope in keys.SCOPES if scope in key.scopes)
        rows.append((key.name, listed, str(key.created or ""), " ".join(limits)))
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def remove(settings: Settings, names: Sequence[str]) -> int:
    """Requests with these keys are refused from now on, and their live streams end."""
    for name in names:
        keys.remove(_file(settings), name)
        print(f"removed {name}; a running server refuses it within a second", file=sys.stderr)
    return 0


def _file(settings: Settings) -> Path:
    if settings.keys_file is None:
        raise Misconfigured("keys_file is not set; give --keys-file FILE, or set STT_KEYS_FILE")
    return settings.keys_file.expanduser()
