"""Limits that several servers count together, in a Redis of the test's own."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server import limits
from server.configuration import Misconfigured
from server.errors import RateLimited
from server.keys import Allowance
from server.limits import Limits
from streaming.types import RATE, Summary
from tests.fakes import tone, wav
from tests.serving import Talker, running, with_engine

RECORDING = {"file": ("a.wav", wav(tone(1.0)))}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server is installed")
    path = tmp_path / "redis.sock"
    with subprocess.Popen(
        [server, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            until = time.monotonic() + 20
            while not path.exists():
                assert time.monotonic() < until
                time.sleep(0.01)
            yield f"redis+unix://{path}", process
        finally:
            process.terminate()


def test_two_servers_count_together(redis: tuple[str, subprocess.Popen[bytes]]) -> None:
    uri, process = redis
    talker = Talker()
    talker.summary = Summary(6 * RATE, 0, "toy", "en", 0.99)
    settings = {
        "limits_storage": uri,
        "client_requests_per_minute": 6,
        "client_audio_seconds_per_hour": 10,
    }
    with (
        running(with_engine(talker, **settings)) as one,
        running(with_engine(talker, **settings)) as two,
    ):
        found = [
            httpx2.post(url + "/v1/audio/transcriptions", files=RECORDING)
            for url in (one, two, one, two)
        ]
        assert [each.status_code for each in found] == [200, 200, 429, 429]
        assert found[2].json()["error"]["type"] == "audio_seconds"
        asked = [httpx2.get(url + "/v1/models") for url in (one, two, one, two)]
        assert [each.status_code for each in asked] == [200, 200, 429, 429]
        assert asked[0].headers["x-ratelimit-remaining-requests"] == "1"
        assert 1 <= int(asked[2].headers["retry-after"]) <= 60
        process.terminate()
        process.wait()
        assert httpx2.get(one + "/v1/models").status_code == 200


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a Redis that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


def test_a_redis_that_stalls_is_waited_for_once_and_not_long(
    silent: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.2)
    monkeypatch.setattr(limits, "AWAY", 0.3)
    waits: list[float] = []

    async def main() -> None:
        counted = Limits(Allowance(requests_per_minute=1, audio_seconds_per_hour=1), silent)
        caller = counted.of_address("10.0.0.1")

        async def ask() -> None:
            began = time.monotonic()
            await counted.request(caller)
            await counted.heard(caller, 100)
            waits.append(time.monotonic() - began)

        async with asyncio.TaskGroup() as tasks:  # together, before anybody knows
            for _ in range(5):
                tasks.create_task(ask())
        assert max(waits) < 1
        waits.clear()
        await asyncio.sleep(0.3)  # one asks again
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(ask())
        assert sum(wait > 0.1 for wait in waits) == 1
        assert max(waits) < 1
        await counted.aclose()

    asyncio.run(main())
    assert caplog.text.count("does not answer") == 1


def test_a_redis_that_is_back_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AWAY", 0.0)

    class Sick(limits.Table):
        well = False

        async def acquire_entry(self, *given: Any, **more: Any) -> bool:
            if not self.well:
                raise ConnectionError
            return await super().acquire_entry(*given, **more)

    async def main() -> None:
        counted = Limits(Allowance(requests_per_minute=1))
        counted._requests.storage = kept = Sick()
        caller = counted.of_address("10.0.0.1")
        for _ in range(3):
            await counted.request(caller)
        kept.well = True
        await counted.request(caller)
        monkeypatch.setattr(limits, "AWAY", 60.0)
        with pytest.raises(RateLimited):
            await counted.request(caller)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgres://:pass@here", "begins with 'postgres'"),
        ("redis://:pass@here:port", "is no address"),
        ("", "begins with ''"),
    ],
)
def test_a_storage_that_cannot_be_is_explained(uri: str, told: str) -> None:
    with pytest.raises(Misconfigured, match=told) as found:
        Limits(Allowance(), uri)
    assert "pass" not in str(found.value)
