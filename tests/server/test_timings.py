"""Where the time went, for whoever asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx2
import pytest

from streaming.meter import Stages
from streaming.types import Spent
from tests.fakes import lines, wav
from tests.server.test_metrics import speak
from tests.serving import running, with_toy

STAGES = {"upload", "load", "container", "detection", "queue", "recognition", "total"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(with_toy()) as url:
        yield url


def ask(url: str, query: str = "", **fields: str) -> httpx2.Response:
    return httpx2.post(
        f"{url}/v1/audio/transcriptions{query}",
        files={"file": wav(lines()[0].samples)},
        data={"language": "en", **fields},
        timeout=60,
    )


@pytest.mark.parametrize("format_", ["json", "verbose_json"])
def test_timings_say_where_the_time_went(url: str, format_: str) -> None:
    answer = ask(url, "?timings=1", response_format=format_)
    told = answer.json()["timings"]
    assert set(told) == STAGES
    assert all(0 <= told[stage] <= told["total"] for stage in STAGES)
    assert told["recognition"] > 0
    assert told["container"] > 0
    shown = dict(each.split(";dur=") for each in answer.headers["server-timing"].split(", "))
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(
        {name: value * 1000 for name, value in told.items()}, abs=0.06
    )


def test_timings_come_in_the_last_event_and_in_a_header_of_other_formats(url: str) -> None:
    events = ask(url, timings="true", stream="true").text.strip().split("\n\n")
    done = json.loads(events[-1].removeprefix("data: "))
    assert set(done["timings"]) == STAGES
    answer = ask(url, "?timings=1", response_format="srt")
    assert answer.text.startswith("1\n")
    assert "recognition;dur=" in answer.headers["server-timing"]


def test_nobody_who_does_not_ask_is_told(url: str) -> None:
    answer = ask(url)
    assert "timings" not in answer.json()
    assert "server-timing" not in answer.headers
    assert ask(url, "?timings=perhaps").status_code == 400
    assert all("timing" not in each for each in asyncio.run(speak(url)))


def test_finals_of_a_stream_say_where_their_time_went(url: str) -> None:
    said = asyncio.run(speak(url, "&timings=1"))
    finals = [each for each in said if each["type"] == "final"]
    assert finals
    for final in finals:
        timing = final["timing"]
        assert isinstance(timing, dict)
        assert set(timing) == {"delay", "queue", "recognition", "speculated"}
        assert timing["recognition"] > 0
        assert timing["delay"] >= 0


def test_stages_that_overlap_are_counted_once() -> None:
    stages = Stages(10.0)
    stages.begin(11.0)
    stages.receive_job(12.0, 13.0, 15.0)  # waited from 12 on, at work from 13 to 15
    stages.receive_job(12.0, 14.0, 16.0)
    stages.receive_job(20.0, 21.5, 22.0)
    stages.receive_job(30.0, None, 31.0)  # never began
    stages.container += 0.5
    assert stages.spent() == Spent(1.0, 0.5, 0.0, 1.0 + 1.5, 3.0 + 0.5)
