"""How fast recordings get done, and how long another would take. Pure: time comes in as an argument."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

HALF = 60.0
"""Seconds of work after which what was measured counts half."""
ENOUGH = 1.0
"""Seconds of work before which there is no telling."""


class Pace:
    """Of one model's recordings, which take turns, a window each."""

    def __init__(self) -> None:
        self._left: dict[Hashable, float | None] = {}  # seconds of audio; None: nobody knows
        self._audio = 0.0  # seconds of audio done lately,
        self._time = 0.0  # in so many seconds in which there was something to do
        self._mark = 0.0  # until when `_time` is counted

    def begin(self, owner: Hashable, length: float | None, now: float) -> None:
        """A recording of `length` seconds is at work."""
        if not self._left:
            self._mark = now
        self._left[owner] = length

    def receive(self, owner: Hashable, seconds: float, now: float) -> None:
        """So much more of its audio is done."""
        left = self._left[owner]
        if left is not None:
            self._left[owner] = max(0.0, left - seconds)
        elapsed, self._mark = now - self._mark, now
        keep: float = 0.5 ** (elapsed / HALF)
        self._audio = self._audio * keep + seconds
        self._time = self._time * keep + elapsed

    def end(self, owner: Hashable) -> None:
        """It is done, or given up."""
        self._left.pop(owner, None)

    def speed(self, now: float) -> float | None:
        """Seconds of audio a second, of all recordings together; None while too little was done to tell."""
        time = self._time
        if self._left:  # what is under way counts, too: it may be stuck
            time += now - self._mark
        return self._audio / time if time >= ENOUGH and self._audio > 0 else None

    def wait(self, length: float | None, now: float) -> float:
        """Seconds that a recording of `length` seconds would have to wait for others, at the speed of late; 0.0 if
        that is not known. As they take turns, a longer one counts only as far as it is at work beside this one."""
        if (speed := self.speed(now)) is None:
            return 0.0
        return sum(self._beside(length)) / speed

    def next_end(self, now: float) -> float:
        """Seconds until one of those at work is likely to be done; 0.0 if that is not known."""
        known = [left for left in self._left.values() if left is not None]
        if (speed := self.speed(now)) is None or not known:
            return 0.0
        return sum(self._beside(min(known))) / speed

    def _beside(self, length: float | None) -> Iterable[float]:
        for left in self._left.values():
            if left is not None:
                yield left if length is None else min(left, length)
