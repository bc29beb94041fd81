"""Samples at 16 kHz from what a live client sends, in whatever encoding; however the bytes are cut, the samples are
the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, TypeAlias

from streaming.audio import pcm
from streaming.audio.containers import Opus
from streaming.audio.media import Stream
from streaming.audio.resample import Resampler
from streaming.types import Samples

Encoding: TypeAlias = pcm.Encoding | Literal["opus", "container"]
ENCODINGS: tuple[Encoding, ...] = (*pcm.ENCODINGS, "opus", "container")


class Source(Protocol):
    """One stream's audio. Used by one caller at a time; close it when it is no longer needed."""

    piece: int | None
    """Bytes that should be handed over at a time, so that a call stays short; None: messages must not be cut."""
    blocking: bool
    """Calls, and steps of what they answer, take longer than an event loop may be held."""

    def decode(self, chunk: bytes) -> Iterator[Samples]:
        """What `chunk` completes, in pieces; exhaust it before the next call. Raises AudioError."""
        ...

    def flush(self) -> Iterator[Samples]:
        """The end: what is still inside. Raises AudioError where nothing could be decoded at all."""
        ...

    def close(self) -> None:
        """Let go. Idempotent, from any thread."""
        ...


class Raw:
    """PCM and G.711: no header, a fixed rate."""

    blocking = False

    def __init__(self, encoding: pcm.Encoding, rate: int, channels: int) -> None:
        self._decoder = pcm.Decoder(encoding, channels)
        self._resampler = Resampler(rate)
        self.piece: int | None = self._decoder.frame * rate // 2  # half a second

    def decode(self, chunk: bytes) -> Iterator[Samples]:
        """See `Source.decode`."""
        yield self._resampler.decode(self._decoder.decode(chunk))

    def flush(self) -> Iterator[Samples]:
        """See `Source.flush`."""
        yield self._resampler.flush()

    def close(self) -> None:
        """See `Source.close`."""


def source(encoding: Encoding, rate: int | None, channels: int) -> Source:
    """The source for a client's encoding. Opus and containers say rate and channels themselves."""
    if encoding == "opus":
        return Opus()
    if encoding == "container":
        return Stream()
    assert rate is not None
    return Raw(encoding, rate, channels)
