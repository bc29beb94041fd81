"""Where a request's time went, for whoever asks with `timings=1`: a table in JSON answers, a `Server-Timing` header."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from starlette.requests import Request

from streaming.types import Summary


@dataclass(frozen=True, slots=True)
class Clock:
    """Of one request, on the monotonic clock."""

    began: float
    """Its head was there."""
    uploaded: float
    """All of its body was there."""

    def table(self, summary: Summary) -> dict[str, float]:
        """Seconds by stage, up to now. Stages overlap, so that they add up to more than the total."""
        spent = asdict(summary.stages) if summary.stages is not None else {}
        work = spent.pop("work", None) or {}
        found = {"upload": self.uploaded - self.began, **spent, **work}
        found["total"] = time.monotonic() - self.began
        return {stage: round(seconds, 4) for stage, seconds in found.items()}


def uploaded(request: Request) -> Clock:
    """The clock of a request whose body has just been read."""
    return Clock(request.state.began, time.monotonic())


def header(table: dict[str, float]) -> str:
    """As browsers show it (W3C Server Timing): milliseconds."""
    return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in table.items())
