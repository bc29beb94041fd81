"""Times of audio of which pieces were left out. Pure.

A server counts what it was sent. Where a microphone had to drop some, everything after it is said to be earlier than it
was.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace

from open_speech_client import Event, Final, Marker, Partial, SpeechStarted, SpeechStopped, Word

MOST = 4096
"""Gaps that are known; the oldest go, whose audio has been final for long."""


class Gaps:
    """Where audio is missing, and the times of events as they were. One thread may `note` while another asks."""

    def __init__(self) -> None:
        # (where in what was sent, how much is missing before it in all), in seconds. Replaced as a whole, never
        # changed: another thread may be reading it.
        self._known: tuple[tuple[float, float], ...] = ((0.0, 0.0),)

    def note(self, at: float, missing: float) -> None:
        """`missing` seconds in all were left out before second `at` of what is sent."""
        if missing > self._known[-1][1]:
            self._known = (*self._known[1 - MOST :], (at, missing))

    def moment(self, at: float, *, end: bool = False) -> float:
        """When second `at` of what was sent was heard. `end`: what ends there lies before a gap there."""
        known = self._known
        find = bisect_left if end else bisect_right
        _, missing = known[max(0, find(known, at, key=lambda gap: gap[0]) - 1)]
        return round(at + missing, 3) if missing else at

    def placed(self, event: Event) -> Event:
        """`event` with the times at which it was heard."""
        match event:
            case SpeechStarted():
                return replace(event, at=self.moment(event.at))
            case SpeechStopped() | Marker():
                return replace(event, at=self.moment(event.at, end=True))
            case Partial():
                return replace(event, words=self._words(event.words))
            case Final():
                return replace(
                    event,
                    start=self.moment(event.start),
                    end=self.moment(event.end, end=True),
                    words=self._words(event.words),
                )
            case _:
                return event

    def _words(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        return tuple(
            replace(word, start=self.moment(word.start), end=self.moment(word.end, end=True))
            for word in words
        )
