"""The bytes of request bodies that wait on disk, all together: a bound, and a measured hint when to come again."""

from __future__ import annotations

import time
from collections.abc import Callable

from streaming.errors import Overloaded


class Room:
    """Whoever holds some gives it back; beyond the bound nothing is given out."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`most` bytes."""
        self._most = most
        self._clock = clock
        self._used = 0
        self._held: set[Share] = set()  # bounded by the requests
        self._stay = 5.0  # seconds that uploads stayed of late

    @property
    def used(self) -> int:
        """Bytes given out."""
        return self._used

    def share(self) -> Share:
        """Of one request."""
        share = Share(self, self._clock())
        self._held.add(share)
        return share

    def _take(self, count: int) -> None:
        self._check(count)
        self._used += count

    def _check(self, count: int) -> None:
        if self._used + count > self._most:
            # As one goes every so often, on average.
            wait = self._stay / max(1, len(self._held) - 1)
            raise Overloaded(
                f"uploads of {self._used / 2**20:.0f} MiB wait here already, and the limit is"
                f" {self._most / 2**20:.0f} MiB; try again in {max(1.0, wait):.0f} s",
                retry_after=min(max(1.0, wait), 600.0),
            )

    def _give(self, share: Share, count: int) -> None:
        self._used -= count
        self._held.discard(share)
        if count:
            self._stay += 0.2 * (self._clock() - share.since - self._stay)


class Share:
    """What one request holds; `with` gives it back."""

    def __init__(self, room: Room, since: float) -> None:
        self._room = room
        self._size = 0
        self.since = since

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *fault: object) -> None:
        size, self._size = self._size, 0
        self._room._give(self, size)

    def expect(self, size: int) -> None:
        """It is told to become `size` bytes. Reserves nothing: telling costs the client nothing. Raises Overloaded."""
        self._room._check(size - self._size)

    def grow(self, size: int) -> None:
        """It is `size` bytes at least. Raises Overloaded."""
        if size > self._size:
            self._room._take(size - self._size)
            self._size = size
