"""What many streams hold together, such as audio that waits for its text, and who has too much of it. Pure."""

from __future__ import annotations

from collections.abc import Hashable

from streaming.types import RATE

BYTES = 4
"""A sample of the engine: float32."""
MOST = 600 * RATE
"""Samples that one stream may be behind: longer than a hung decode and the start of its model's next process take."""


class Common:
    """A bound for all owners together. Beyond it, those give way that hold more than their share."""

    def __init__(self, most: int) -> None:
        """`most` in all, of whatever is counted."""
        self._most = most
        self._of: dict[Hashable, int] = {}
        self._all = 0

    def put(self, owner: Hashable, size: int) -> None:
        """`owner` holds so much now."""
        self._all += size - self._of.get(owner, 0)
        self._of[owner] = size

    def forget(self, owner: Hashable) -> None:
        """`owner` is gone."""
        self._all -= self._of.pop(owner, 0)

    @property
    def full(self) -> bool:
        """They hold as much as they may, or more."""
        return self._all >= self._most

    def excess(self, owner: Hashable) -> bool:
        """`owner` may not hold more now."""
        return self.full and self._of.get(owner, 0) * len(self._of) >= self._all


class Backlog(Common):
    """In samples. Who is behind more than its share goes: the machine cannot keep up, and whose sender waits has its
    audio still. While it is full, no other stream should be taken."""

    @property
    def seconds(self) -> float:
        """Of all streams together."""
        return self._all / RATE

    def excess(self, owner: Hashable) -> bool:
        """See `Common.excess`; beyond `MOST` whatever the others do."""
        return self._of.get(owner, 0) >= MOST or super().excess(owner)
