"""Counts of requests, streams and audio, by a clock that the test turns."""

import time

import anyio
import pytest
from limits.aio.storage import Storage

from server.errors import RateLimited, closing
from server.keys import Allowance, Key
from server.limits import Limits, Table
from streaming.errors import Overloaded


class Clock:
    now = 1_700_006_400.0  # midnight


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "time", lambda: found.now)
    return found


def test_requests_move_through_a_window(clock: Clock) -> None:
    async def main() -> None:
        limits = Limits(Allowance(requests_per_minute=3))
        caller = limits.of_address("10.0.0.1")
        for left in (2, 1, 0):
            headers = await limits.request(caller)
            assert headers["ratelimit-policy"] == '"requests";q=3;w=60'
            assert headers["ratelimit"].startswith(f'"requests";r={left};t=')
            assert headers["x-ratelimit-remaining-requests"] == str(left)
            clock.now += 10
        with pytest.raises(RateLimited, match="more than 3 requests a minute") as found:
            await limits.request(caller)
        assert found.value.retry_after == 30
        assert found.value.headers["ratelimit"] == '"requests";r=0;t=30'
        await limits.request(limits.of_address("10.0.0.2"))
        clock.now += 30.5  # the first of the three is a minute old
        await limits.request(caller)
        with pytest.raises(RateLimited):
            await limits.request(caller)

    anyio.run(main)


def test_streams_are_counted_while_they_are_open() -> None:
    limits = Limits(Allowance(streams=2))
    caller = limits.of_address("10.0.0.1")
    limits.take(caller)
    limits.take(caller)
    with pytest.raises(RateLimited, match="2 live streams"):
        limits.take(caller)
    limits.take(limits.of_address("10.0.0.2"))
    limits.release(caller)
    limits.take(caller)


def test_headers_say_what_is_left_of_streams_and_audio(clock: Clock) -> None:
    async def main() -> None:
        allowance = Allowance(streams=2, audio_seconds_per_hour=100, audio_seconds_per_day=150)
        limits = Limits(allowance)
        caller = limits.of_address("10.0.0.1")
        limits.take(caller)
        clock.now += 600
        await limits.heard(caller, 255)
        assert await limits.request(caller) == {
            "ratelimit-policy": '"streams";q=2;qu="concurrent-requests",'
            ' "audio-hour";q=100;qu="audio-seconds";w=3600,'
            ' "audio-day";q=150;qu="audio-seconds";w=86400',
            "ratelimit": '"streams";r=1, "audio-hour";r=74;t=3000, "audio-day";r=124;t=85800',
        }
        limits.take(caller)
        with pytest.raises(RateLimited):
            await limits.heard(caller, 10_000)
        clock.now += 1800
        left = (await limits.request(caller))["ratelimit"]
        assert left.startswith('"streams";r=0, "audio-hour";r=0;t=')
        assert await limits.request(Limits(Allowance()).of_address("10.0.0.2")) == {}

    anyio.run(main)


def test_headers_hold_all_limits_beside_openai_s_of_requests() -> None:
    async def main() -> None:
        limits = Limits(Allowance(requests_per_minute=1, streams=2))
        caller = limits.of_address("10.0.0.1")
        headers = await limits.request(caller)
        assert headers["ratelimit"] == '"requests";r=0;t=60, "streams";r=2'
        assert headers["x-ratelimit-limit-requests"] == "1"
        with pytest.raises(RateLimited) as found:
            await limits.request(caller)
        assert found.value.headers["ratelimit"] == '"requests";r=0;t=60, "streams";r=2'

    anyio.run(main)


def test_audio_is_counted_by_the_hour_and_the_day(clock: Clock) -> None:
    async def main() -> None:
        limits = Limits(Allowance(audio_seconds_per_hour=100, audio_seconds_per_day=150))
        caller = limits.of_address("10.0.0.1")
        await limits.heard(caller, 0)
        await limits.heard(caller, 900)
        await limits.heard(caller, 0)
        with pytest.raises(RateLimited, match="100 seconds of audio an hour") as found:
            await limits.heard(caller, 500)  # what was left is gone, too
        assert found.value.kind == "audio_seconds"
        with pytest.raises(RateLimited):
            await limits.heard(caller, 0)
        clock.now += 2 * 3600
        with pytest.raises(RateLimited, match="150 seconds of audio a day"):
            await limits.heard(caller, 110)
        clock.now += 2 * 86400
        await limits.heard(caller, 1)

    anyio.run(main)


def test_a_key_has_its_own_limits_where_it_names_them() -> None:
    limits = Limits(Allowance(requests_per_minute=1, streams=1))
    key = Key("a", b"", limits=(("requests_per_minute", None), ("streams", 7)))
    assert limits.of_key(key).allowance == Allowance(None, 7, None, None)


def test_the_table_stays_small() -> None:
    async def main() -> None:
        table = Table(most=100)
        for number in range(1000):
            assert await table.acquire_entry(f"client {number}", 3, 60)
            assert await table.acquire_sliding_window_entry(f"client {number}", 3, 3600)
        assert len(table) <= 100 + 400
        assert await table.get_moving_window("client 999", 3, 60) == (time.time(), 1)
        assert await table.get_moving_window("client 0", 3, 60) == (time.time(), 0)

    anyio.run(main)


def test_windows_that_are_over_are_forgotten(clock: Clock) -> None:
    async def main() -> None:
        table = Table()
        await table.acquire_entry("a", 3, 60, 2)
        await table.acquire_sliding_window_entry("a", 10, 60, 4)
        assert not await table.acquire_entry("a", 3, 60, 2)
        clock.now += 200
        assert await table.get_moving_window("a", 3, 60) == (clock.now, 0)
        assert await table.get_sliding_window("a", 60) == (0, 0.0, 0, pytest.approx(90, abs=31))
        await table.acquire_entry("a", 3, 60)
        await table.clear("a")
        assert await table.reset() == 0 or len(table) == 0

    anyio.run(main)


def test_a_storage_that_does_not_answer_limits_nobody(caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    class Gone(Table):
        async def acquire_entry(self, *_: object, **__: object) -> bool:
            nonlocal asked
            asked += 1
            raise ConnectionError("redis://:password@nowhere")

        async def get_moving_window(self, *_: object, **__: object) -> tuple[float, int]:
            raise ConnectionError("redis://:password@nowhere")

    async def main() -> None:
        limits = Limits(Allowance(requests_per_minute=1))
        gone: Storage = Gone()
        limits._requests.storage = gone
        caller = limits.of_address("10.0.0.1")
        for _ in range(5):
            await limits.request(caller)

    anyio.run(main)
    assert asked == 1  # then it is left alone for a while
    assert caplog.text.count("does not answer (ConnectionError)") == 1
    assert "password" not in caplog.text


def test_who_must_wait_long_is_not_told_to_try_again() -> None:
    assert closing(RateLimited("", retry_after=60)) == 1013
    assert closing(RateLimited("", retry_after=61)) == 1008
    assert closing(Overloaded("", retry_after=3600)) == 1013
