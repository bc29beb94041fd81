"""One stream in its shell: how it slows its sender, and what happens when something in it breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack

import numpy as np
import pytest
from numpy.typing import NDArray

from server.sessions import explained
from streaming.backends.base import Hypothesis, Window, WindowBackend
from streaming.backends.scripted import ScriptedBackend
from streaming.backlog import Backlog
from streaming.ears import Ears
from streaming.errors import BackendError, ModelResting, Overloaded
from streaming.events import Failed, Final
from streaming.executor import Executor
from streaming.local import LAG, LocalStream
from streaming.scheduler import Job, Lane, _Cost
from streaming.types import RATE, ModelInfo, Options, Samples
from tests.clock import Clock
from tests.drive import loudness, speak


class _Hearing:
    """Says what is loud; or waits, or fails, where it is told to."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.may.set()
        self.fails = False

    def open(self) -> object:
        return object()

    def detect(
        self, states: Sequence[object], frames: Sequence[Samples]
    ) -> list[NDArray[np.float32]]:
        self.may.wait(30)
        if self.fails:
            raise RuntimeError("broken")
        return [loudness(each) for each in frames]


def _executor(backend: WindowBackend) -> Executor:
    return Executor(backend, ModelInfo("scripted", "scripted", "cpu", "none", 0.0), 1)


def _stream(executor: Executor, ears: Ears) -> LocalStream:
    return LocalStream(Options(pre_roll_ms=0), executor, ears, object(), None, AsyncExitStack())


async def _text(stream: LocalStream) -> str:
    return "".join([event.text async for event in stream if isinstance(event, Final)])


def test_a_sender_ahead_of_the_lag_is_slowed_to_the_speed_of_speech() -> None:
    hearing = _Hearing()

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        executor, ears = _executor(ScriptedBackend()), Ears(hearing)
        stream = _stream(executor, ears)
        hearing.may.clear()
        await stream.send(np.zeros(LAG + RATE, np.float32))
        took = []
        for count, length in ((100, RATE // 50), (10, RATE // 5), (3, 5 * RATE)):
            before = loop.time()
            for _ in range(count):
                await stream.send(np.zeros(length, np.float32))
            took.append(loop.time() - before)
        hearing.may.set()
        await stream.aclose()
        await ears.aclose()
        await executor.close(force=False)
        return took

    with asyncio.Runner(loop_factory=Clock) as runner:
        assert runner.run(scenario()) == pytest.approx([2.0, 2.0, 3.0])


def test_a_stream_that_is_too_far_behind_takes_no_more_but_says_what_it_took() -> None:
    hearing = _Hearing()

    async def scenario() -> str:
        executor, ears = _executor(ScriptedBackend()), Ears(hearing)
        backlog = Backlog(20 * RATE)
        late, other = (
            LocalStream(
                Options(pre_roll_ms=0), executor, ears, object(), None, AsyncExitStack(), backlog
            )
            for _ in range(2)
        )
        hearing.may.clear()
        await other.send(speak([3, 0.5]))
        await late.send(speak([0.3, 1, 2, 19.5]))
        with pytest.raises(Overloaded) as refused:
            await late.send(speak([4]))
        assert refused.value.retry_after >= 1.0
        assert late.received == len(speak([0.3, 1, 2, 19.5]))
        assert late.lag == pytest.approx(late.received / RATE)
        await other.send(speak([5, 0.5]))
        for stream in (late, other):
            await stream.end()
        hearing.may.set()
        said = await _text(late) + ";" + await _text(other)
        for stream in (late, other):
            await stream.aclose()
        assert not backlog.full
        assert backlog.seconds == 0.0
        await ears.aclose()
        await executor.close(force=False)
        return said

    assert asyncio.run(scenario()) == " w1 w2; w3 w5"


class _Resting(ScriptedBackend):
    """Of which nothing can be had before `until` on the clock of the loop."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until
        self.loop = asyncio.get_running_loop()

    def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
        if self.loop.time() < self.until:
            raise ModelResting("it died again and again", retry_after=30.0)
        return ScriptedBackend.decode(self, windows)


async def _through_a_rest(until: float) -> list[str]:
    executor, ears = _executor(_Resting(until)), Ears(_Hearing())
    stream = _stream(executor, ears)
    await stream.send(speak([0.3, 1, 2, 1.0, 3, 0.2]))
    await stream.end()
    said = []
    try:
        async for event in stream:
            assert not isinstance(event, Failed)
            if isinstance(event, Final):
                said.append(event.text)
    finally:
        await stream.aclose()
        await ears.aclose()
        await executor.close(force=False)
    return said


def test_finals_wait_out_the_rest_of_a_model() -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        assert runner.run(_through_a_rest(20.0)) == [" w1 w2", " w3"]
        assert runner.get_loop().time() >= 30.0


def test_a_model_that_rests_again_ends_the_stream_with_when_to_come_again() -> None:
    with (
        asyncio.Runner(loop_factory=Clock) as runner,
        pytest.raises(ModelResting) as ended,
    ):
        runner.run(_through_a_rest(1e9))
    assert explained(ended.value)[1] == 1013
    assert explained(ended.value)[0]["retry_after"] == 30.0


def test_a_detector_that_fails_ends_its_streams_with_a_reason() -> None:
    hearing = _Hearing()
    hearing.fails = True

    async def scenario() -> None:
        executor, ears = _executor(ScriptedBackend()), Ears(hearing)
        stream = _stream(executor, ears)
        await stream.send(speak([0.3, 1, 2, 1.0]))
        await stream.end()
        with pytest.raises(BackendError, match="open a new one"):
            await asyncio.wait_for(_text(stream), 30)
        await stream.aclose()
        hearing.fails = False
        other = _stream(executor, ears)
        await other.send(speak([0.3, 1, 2, 1.0]))
        await other.end()
        assert await asyncio.wait_for(_text(other), 30) == " w1 w2"
        await other.aclose()
        await ears.aclose()
        await executor.close(force=False)

    asyncio.run(scenario())


def test_a_fault_within_one_stream_is_no_other_streams() -> None:
    async def scenario() -> None:
        executor, ears = _executor(ScriptedBackend()), Ears(_Hearing())
        bad, good = _stream(executor, ears), _stream(executor, ears)

        def broken(window: object) -> object:
            raise ZeroDivisionError

        bad._session._key = broken
        for stream in (bad, good):
            await stream.send(speak([0.3, 1, 2, 1.0]))
            await stream.end()
        with pytest.raises(BackendError, match="open a new one"):
            await asyncio.wait_for(_text(bad), 30)
        assert await asyncio.wait_for(_text(good), 30) == " w1 w2"
        for stream in (bad, good):
            await stream.aclose()
        await ears.aclose()
        await executor.close(force=False)

    asyncio.run(scenario())


def test_a_window_that_breaks_the_recogniser_fails_alone_in_its_batch() -> None:
    class Choking(ScriptedBackend):
        def decode(self, windows: Sequence[Window]) -> list[Hypothesis]:
            if any(len(window.samples) == 7 * RATE for window in windows):
                raise RuntimeError("choked")
            return super().decode(windows)

    async def scenario() -> list[Job]:
        executor, done = _executor(Choking()), list[Job]()
        everything = asyncio.Event()

        def deliver(job: Job) -> None:
            done.append(job)
            if len(done) == 3:
                everything.set()

        jobs = [
            Job(owner, Lane.FINAL, Window(np.zeros(seconds * RATE, np.float32)), "any")
            for owner, seconds in enumerate((5, 7, 6))
        ]
        for job in jobs:
            executor.attach(job.owner, deliver, lambda error: None, live=True)
        for size in (1, 1):
            executor.scheduler._costs.setdefault("any", _Cost()).learn(size, 0.001)
        executor.submit(jobs)
        await asyncio.wait_for(everything.wait(), 30)
        await executor.close(force=False)
        return jobs

    first, second, third = asyncio.run(scenario())
    assert isinstance(first.result, Hypothesis)
    assert isinstance(second.result, BackendError)
    assert isinstance(third.result, Hypothesis)
    assert first.started == third.started, "they ran together"
