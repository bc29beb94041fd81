"""A clock for tests that wait: minutes of it take no time."""

from __future__ import annotations

import asyncio


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time passes only while everybody waits, and then at once."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        waiting = [each.when() for each in self._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        if waiting and not self._ready:  # type: ignore[attr-defined]
            self.now = max(self.now, min(waiting))
        super()._run_once()  # type: ignore[misc]
