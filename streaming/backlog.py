"""The audio of all live streams that waits for its text, and who has too much of it. Pure."""

from __future__ import annotations

from collections.abc import Hashable

from streaming.types import RATE

BYTES = 4
"""A sample of the engine: float32."""
MOST = 600 * RATE
"""Samples that one stream may be behind: longer than a hung decode and the start of its model's next process take."""


class Backlog:
    """A bound for all streams together. Beyond it, those go that are behind more than their share: the machine cannot
    keep up, and whose sender waits has its audio still."""

    def __init__(self, most: int) -> None:
        """`most` samples in all."""
        self._most = most
        self._of: dict[Hashable, int] = {}
        self._all = 0

    def put(self, owner: Hashable, samples: int) -> None:
        """`owner` is so much behind now."""
        self._all += samples - self._of.get(owner, 0)
        self._of[owner] = samples

    def forget(self, owner: Hashable) -> None:
        """`owner` is gone."""
        self._all -= self._of.pop(owner, 0)

    @property
    def seconds(self) -> float:
        """Of all streams together."""
        return self._all / RATE

    @property
    def full(self) -> bool:
        """No other stream should be taken."""
        return self._all >= self._most

    def excess(self, owner: Hashable) -> bool:
        """`owner` may not send more now."""
        mine = self._of.get(owner, 0)
        return mine >= MOST or (self.full and mine * len(self._of) >= self._all)
