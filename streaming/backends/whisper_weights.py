"""What a CTranslate2 Whisper directory holds, read without loading it: a few kilobytes of a file of gigabytes."""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from streaming.backends.base import Capabilities
from streaming.types import RATE

_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml"
    " cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am"
    " yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
LANGUAGES = tuple(_CODES.split())
"""Whisper's languages in the order of their tokens, most training data first; Cantonese only since large-v3."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which of the published Whispers the weights belong to."""

    multilingual: bool
    languages: tuple[str, ...]
    encoder_layers: int
    decoder_layers: int

    @property
    def translates(self) -> bool:
        """Turbo and distil decoders are cut to a few layers and were trained without translation: they print wrong
        text instead of failing."""
        cut = self.encoder_layers >= 12 and self.decoder_layers * 3 <= self.encoder_layers
        return self.multilingual and not cut


def capabilities(layout: Layout) -> Capabilities:
    """What Whispers of this layout can do."""
    return Capabilities(
        kind="window",
        languages=layout.languages,
        tasks=("transcribe", "translate") if layout.translates else ("transcribe",),
        detects_language=layout.multilingual,
        word_times=True,
        longest=30 * RATE,
        full=30 * RATE,
        max_batch=16,
    )


@lru_cache(maxsize=256)
def _layout(path: Path, stamp: tuple[int, ...]) -> Layout | None:
    del stamp
    names = _vocabulary(path)
    if names is None or "<|startoftranscript|>" not in names:
        return None
    try:
        encoder, decoder = _layers(path / "model.bin")
    except (OSError, struct.error, ValueError):
        return None
    multilingual = names.index("<|startoftranscript|>") >= 50258 or len(names) >= 51865
    known = set(names)
    languages = tuple(each for each in LANGUAGES if f"<|{each}|>" in known)
    return Layout(multilingual, languages if multilingual else ("en",), encoder, decoder)


def layout(path: Path) -> Layout | None:
    """The layout of the weights at `path`; None if they are no CTranslate2 Whisper."""
    try:
        weights = (path / "model.bin").stat()
        vocabulary = next(file for name in VOCABULARIES if (file := path / name).is_file()).stat()
    except (OSError, StopIteration):
        return None
    stamp = weights.st_mtime_ns, weights.st_size, vocabulary.st_mtime_ns, vocabulary.st_size
    return _layout(path, stamp)


def _vocabulary(path: Path) -> list[str] | None:
    try:
        if (path / "vocabulary.json").is_file():
            found = json.loads((path / "vocabulary.json").read_text("utf-8"))
            return found if isinstance(found, list) else None
        if (path / "vocabulary.txt").is_file():
            return (path / "vocabulary.txt").read_text("utf-8").split("\n")
    except (OSError, ValueError):
        pass
    return None


def _layers(file: Path) -> tuple[int, int]:
    """Encoder and decoder layers, from the names of the variables; their values are skipped."""
    counts = {"encoder": 0, "decoder": 0}
    with file.open("rb") as data:

        def number(kind: str) -> int:
            size = struct.calcsize(kind)
            value: int = struct.unpack(kind, data.read(size))[0]
            return value

        def text() -> str:
            return data.read(number("<H")).rstrip(b"\0").decode()

        version = number("<I")
        if not 2 <= version <= 20:
            raise ValueError("not a CTranslate2 model")
        if text() != "WhisperSpec":
            raise ValueError("not a Whisper")
        number("<I")  # the specification's revision
        for _ in range(number("<I")):
            found = re.match(r"(encoder|decoder)/layer_(\d+)/", text())
            if found:
                counts[found[1]] = max(counts[found[1]], int(found[2]) + 1)
            data.seek(4 * number("<B"), 1)
            number("<B")
            data.seek(number("<I"), 1)
        if data.tell() > os.fstat(data.fileno()).st_size:
            raise ValueError("the end is missing")
    return counts["encoder"], counts["decoder"]
