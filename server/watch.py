"""A look at the event loop from inside it: how late it wakes up, and what held it when it stood still."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import time
from contextlib import suppress
from typing import IO

from server.context import Context

log = logging.getLogger(__name__)

PAUSE = 0.05
"""Seconds between two looks."""
STILL = 1.0
"""Seconds without a look after which all stacks are written, while the loop stands still; at times half is enough."""
AGAIN = 600.0
"""Seconds after which that may happen again."""
LAGS = 1.0
"""Seconds between two looks at how far streams are behind."""


async def watch(here: Context, out: IO[str] | None = None) -> None:
    """Until cancelled. Stacks go to `out`, which must be a real file; default: stderr."""
    out = out or sys.stderr
    lags_at = armed_at = quiet_until = 0.0
    try:
        while True:
            began = time.monotonic()
            if began >= quiet_until and began - armed_at >= STILL / 2:
                armed_at = began
                # Python's own watchdog is a thread that needs no interpreter lock: it speaks even if nothing else can.
                # It is a new one each time, hence not at every look.
                with suppress(OSError, ValueError, AttributeError):  # a stderr that is no file
                    faulthandler.dump_traceback_later(STILL, file=out)
            await asyncio.sleep(PAUSE)
            now = time.monotonic()
            late = max(0.0, now - began - PAUSE)
            here.metrics.lateness.observe(late)
            if began >= quiet_until and now - armed_at >= STILL:
                log.warning(
                    "the event loop stood still for %.1f s; the stacks above say where", late
                )
                faulthandler.cancel_dump_traceback_later()
                quiet_until = max(quiet_until, now + AGAIN)
            if now - lags_at >= LAGS:
                lags_at = now
                for lag in here.engine.pulse().lags:
                    here.metrics.lag.observe(lag)
    finally:
        faulthandler.cancel_dump_traceback_later()
