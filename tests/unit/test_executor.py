"""A model at work: what waits for time alone comes to its turn by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence

import numpy as np

from streaming.backends.base import Capabilities, Hypothesis, Window
from streaming.backends.scripted import ScriptedBackend
from streaming.executor import Executor
from streaming.scheduler import Job, Lane
from streaming.types import ModelInfo

SILENCE = Window(np.zeros(1, np.float32))


class _Slow:
    """Takes a tenth of a second for every window."""

    compute_type = "none"
    memory = None
    capabilities: Capabilities = ScriptedBackend().capabilities

    def key(self, window: Window) -> Hashable:
        return 0

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        time.sleep(0.1)
        return [Hypothesis("") for _ in windows]

    def close(self) -> None:
        pass


async def _rests(recordings: int) -> int:
    """Of so many windows of a recording, those that leave a rest behind them."""
    executor = Executor(_Slow(), ModelInfo("slow", "slow", "cpu", "none", 0.0), 2)
    done: asyncio.Queue[Job] = asyncio.Queue()
    for owner, live in (("stream", True), ("file", False)):
        executor.attach(owner, done.put_nowait, lambda _: None, live=live)
    executor.submit([Job("stream", Lane.PARTIAL, SILENCE, 0)])
    await done.get()
    executor.submit([Job("file", Lane.BULK, SILENCE, 0) for _ in range(recordings)])
    rested = 0
    for _ in range(recordings):
        await asyncio.wait_for(done.get(), 10)
        rested += executor.scheduler.rest(time.monotonic()) is not None
    await executor.close(force=False)
    return rested


def test_recordings_that_rest_beside_a_stream_that_says_nothing_go_on() -> None:
    assert asyncio.run(_rests(3)) == 2  # after the last nobody waits
