"""A file of subtitles that grows while somebody speaks."""

from __future__ import annotations

from pathlib import Path

from open_speech_client import Final
from server import formats
from streaming.types import RATE, Segment, Word


class Subtitles:
    """SubRip that is whole after every final, so that who reads it meanwhile, or after a crash, has all that was final.

    A final is appended. Of what stands there only the last subtitle is written again, at the same length: how long it
    stays depends on what follows.
    """

    def __init__(self, path: Path) -> None:
        """An empty file. Raises OSError where it cannot be written."""
        self._file = path.open("wb", buffering=0)  # nothing waits in memory for a crash
        self._captions = formats.Captions()
        self._numbers = 1  # of the last subtitle
        self._end = 0  # bytes before it

    def receive(self, final: Final) -> None:
        """Append what was said, if anything was. Raises OSError."""
        if not final.text:
            return
        done = self._captions.decode(_segment(final))
        before = formats.srt(done, self._numbers).encode()
        self._numbers += len(done)
        last = formats.srt(self._captions.held(), self._numbers).encode()
        self._file.seek(self._end)
        rest = memoryview(before + last)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end += len(before)

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


def _segment(final: Final) -> Segment:
    words = tuple(
        Word(f" {word.text}", int(word.start * RATE), int(word.end * RATE), word.probability)
        for word in final.words
    )
    return Segment(int(final.start * RATE), int(final.end * RATE), f" {final.text}", words)
