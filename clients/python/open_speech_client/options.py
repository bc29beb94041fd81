"""What a stream may be asked to be. The server checks the values, and says what it expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict


class Options(TypedDict, total=False):
    """Options of a stream; what is left out is the server's default."""

    model: str
    language: str | None
    """ISO-639-1 code; None detects."""
    task: Literal["transcribe", "translate"]
    encoding: Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw", "opus", "container"]
    sample_rate: int
    """8000 … 48000; default 16000, for µ-law and A-law 8000."""
    channels: int
    endpointing: Literal["silence", "client"]
    """`client`: only `commit` and `end` end an utterance."""
    endpointing_ms: int
    """Silence that ends an utterance."""
    vad_threshold: float
    pre_roll_ms: int
    offset: float
    """Seconds added to all times."""
    partials: bool
    eager: bool
    """The final as it will be if nobody speaks on, as soon as it exists."""
    words: bool
    """Times of the words."""
    timings: bool
    """Where the time of each final went."""
    prompt: str
    hotwords: Sequence[str]


WIDTH = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
"""Bytes per sample, where samples have a fixed size."""


def cleaned(options: Options) -> dict[str, Any]:
    """`options` as JSON: without what is None."""
    found: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    hotwords = found.get("hotwords")
    if hotwords is not None and not isinstance(hotwords, str):
        found["hotwords"] = list(hotwords)
    return found
