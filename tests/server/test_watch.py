"""The event loop under watch."""

import asyncio
import logging
import time
from pathlib import Path

import pytest

from server import watch
from tests.server.test_metrics import series, value
from tests.serving import Talker, context


def test_a_loop_that_stands_still_is_told_with_the_stacks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "STILL", 0.2)
    monkeypatch.setattr(watch, "PAUSE", 0.01)
    here = context(Talker())

    def hold_the_loop() -> None:
        time.sleep(0.5)

    async def scenario() -> str:
        with (tmp_path / "stacks").open("w") as out:
            watching = asyncio.create_task(watch.watch(here, out))
            for _ in range(50):  # at work: longer than it may stand still
                await asyncio.sleep(0.01)
            for _ in range(2):
                while not caplog.records:
                    await asyncio.sleep(0.01)
                    if not caplog.records:
                        hold_the_loop()
                hold_the_loop()
                await asyncio.sleep(0.05)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return (await here.metrics.text()).decode()

    with caplog.at_level(logging.WARNING):
        found = series(asyncio.run(scenario()))
    stacks = (tmp_path / "stacks").read_text()
    assert stacks.count("Timeout") == 1
    assert "hold_the_loop" in stacks
    assert caplog.text.count("stood still") == 1
    assert value(found, "event_loop_lateness_seconds_count") > 0
    assert value(found, "event_loop_lateness_seconds_bucket", le="0.1") < value(
        found, "event_loop_lateness_seconds_count"
    )
